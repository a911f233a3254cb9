// ToMe's bipartite matching: every even token finds the odd token whose key is most like its own; the r best pairs
// merge.
//
// Keys are averaged over heads and made unit length (metric.cu). Then a block owns 64 even and 64 odd tokens, and keeps
// the best cosine of each row and its column, so the matrix of similarities is never written. The last block of an
// image unites the column tiles, picks the r best rows by bisection and writes the indices. Products are float by FMA:
// rounded keys would choose other partners.
//
// 2 B (N / 2)^2 d FLOPs. k is read once, the metric once for every 64 tokens: bound by memory while Hk is larger than N
// / 512. Shared memory 74 KB.
#include "cuda/metric.cuh"
#include "cuda/select.cuh"
#include "cuda/tile.cuh"

namespace ficoco {
namespace {

constexpr int64_t kTailTokens = 1024;  // up to here the last block of an image selects, beyond another kernel

// Every other token from `first` on.
struct Side {
  int64_t first, count;
  __host__ __device__ Side(int64_t first, int64_t tokens)
      : first(first), count(tokens > first ? (tokens - first + 1) / 2 : 0) {}
  __device__ int64_t token(int64_t i) const { return first + 2 * i; }
};

inline __host__ __device__ Side even_side(const MatchParams& p) { return {2 * p.first, p.tokens}; }
inline __host__ __device__ Side odd_side(const MatchParams& p) { return {p.distill ? 3 : 1, p.tokens}; }

struct Nearest {
  const float* metric;  // (B, N, d)
  float* best;          // (B, tiles, evens) largest cosine with the odd tokens of a tile
  int* token;           // (B, tiles, evens) the first token that has it
  int64_t tiles;
  int* kept_index;     // (B, N) scratch: a kept token's index in `kept`
  uint32_t* counters;  // (B) or nullptr: another kernel selects
};

// One image's selection by one block; kItems * blockDim.x >= patches.
template <int kItems>
__device__ void select_pairs(const MatchParams& p, const Nearest& n, int64_t b, SelectShared& shared) {
  const Side even = even_side(p);
  const int patches = static_cast<int>(p.tokens - p.first);
  const float* bests = n.best + b * n.tiles * even.count;
  int* partners = n.token + b * n.tiles * even.count;
  const int tiles = static_cast<int>(n.tiles), edges = static_cast<int>(even.count);
  uint32_t keys[kItems];
  constexpr int kAtOnce = kItems <= 4 ? kItems : 1;  // items whose reads do not wait for each other
#pragma unroll
  for (int k0 = 0; k0 < kItems; k0 += kAtOnce) {
    float best[kAtOnce];
    int edge[kAtOnce], winner[kAtOnce] = {};
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = threadIdx.x + (k0 + k) * blockDim.x, of = i + static_cast<int>(p.first - even.first);
      edge[k] = i < patches && of >= 0 && of % 2 == 0 && tiles > 0 ? of / 2 : -1;
      best[k] = edge[k] < 0 ? -INFINITY : bests[edge[k]];
    }
#pragma unroll 2
    for (int tile = 1; tile < tiles; ++tile) {
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const float one = edge[k] < 0 ? -INFINITY : bests[tile * edges + edge[k]];
        if (edge[k] < 0 || ordered(one) <= ordered(best[k])) continue;
        best[k] = one;
        winner[k] = tile;
      }
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int i = threadIdx.x + (k0 + k) * blockDim.x;
      keys[k0 + k] = edge[k] < 0 ? 0 : ordered(best[k]);  // 0: below every score
      if (winner[k]) partners[edge[k]] = partners[winner[k] * edges + edge[k]];
      if (i < patches) p.redundancy[b * (p.tokens - p.first) + i] = best[k];
    }
  }
  const uint32_t chosen = select_largest(patches, static_cast<int>(p.r), keys, shared);
  int64_t *sources = p.sources + b * p.r, *kept = p.kept + b * (p.tokens - p.r);
  int* kept_index = n.kept_index + b * p.tokens;
  if (p.first && threadIdx.x == 0) kept[0] = kept_index[0] = 0;
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const int i = threadIdx.x + k * blockDim.x, token = i + static_cast<int>(p.first);
    const int before = rank_of(chosen, k, shared);
    if (i >= patches) continue;
    if (chosen >> k & 1u) {
      sources[before] = token;
    } else {
      kept[token - before] = token;
      kept_index[token] = token - before;
    }
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const int edge = static_cast<int>(threadIdx.x + k * blockDim.x) + static_cast<int>(p.first - even.first);
    const int before = rank_of(chosen, k, shared);
    if (!(chosen >> k & 1u)) continue;
    p.targets[b * p.r + before] = kept_index[n.token[b * n.tiles * even.count + edge / 2]];
    p.weights[b * p.r + before] = 1.f;
  }
}

template <bool kVector>
__global__ void __launch_bounds__(kTileThreads, 2) nearest_kernel(MatchParams p, Nearest n) {
  extern __shared__ __align__(128) unsigned char storage[];
  auto& shared = *reinterpret_cast<TileShared<float, kStages>*>(storage);
  using Sums = TileSums<float>;
  static_assert(Sums::kRowWarps == 1, "a row is compared within a warp");
  const Side even = even_side(p), odd = odd_side(p);
  const int64_t tile = blockIdx.x, i0 = static_cast<int64_t>(blockIdx.y) * kTile, j0 = tile * kTile, b = blockIdx.z;
  const int rows = static_cast<int>(min(static_cast<int64_t>(kTile), even.count - i0));
  const int columns = static_cast<int>(min(static_cast<int64_t>(kTile), odd.count - j0));
  const float* metric = n.metric + b * p.tokens * p.width;
  Sums sums;
  const auto load = [&](int, int chunk, TileStep<float>& to) {
    const int64_t c = static_cast<int64_t>(chunk) * kTile;
    to.a.load<kVector>([&](int i) { return metric + even.token(i0 + i) * p.width; }, rows, c, p.width);
    to.b.load<kVector>([&](int j) { return metric + odd.token(j0 + j) * p.width; }, columns, c, p.width);
  };
  walk(shared, 1, chunks_of(p.width), load, [&](int, int, const TileStep<float>& from) { sums.add(from.a, from.b); });
#pragma unroll
  for (int i = 0; i < Sums::kRows; ++i) {
    uint32_t key = 0;
    int column = kTile;
#pragma unroll
    for (int j = 0; j < Sums::kColumns; ++j) {
      if (Sums::column(j) < columns) keep_better(key, column, ordered(sums.at(i, j)), Sums::column(j));
    }
#pragma unroll
    for (int offset = 1; offset < Sums::kAcross; offset *= 2) {
      const uint32_t other_key = __shfl_xor_sync(kAllLanes, key, offset);
      const int other_column = __shfl_xor_sync(kAllLanes, column, offset);
      keep_better(key, column, other_key, other_column);
    }
    if (threadIdx.x % Sums::kAcross == 0 && Sums::row(i) < rows) {
      const int64_t at = (b * n.tiles + tile) * even.count + i0 + Sums::row(i);
      n.best[at] = from_ordered(key);
      n.token[at] = static_cast<int>(odd.token(j0 + column));
    }
  }
  if (!n.counters || !last_block(n.counters + b, gridDim.x * gridDim.y)) return;
  __shared__ SelectShared selection;
  select_pairs<kTailTokens / kTileThreads>(p, n, b, selection);
}

template <int kItems, int kThreads>
__global__ void __launch_bounds__(kThreads, 1) select_kernel(MatchParams p, Nearest n) {
  __shared__ SelectShared shared;
  select_pairs<kItems>(p, n, blockIdx.x, shared);
}

struct Workspace {
  float* metric;
  Nearest nearest;
};

Workspace take(const MatchParams& p, Pieces& pieces) {
  const Side even = even_side(p), odd = odd_side(p);
  const int64_t tiles = even.count ? ceil_div(odd.count, kTile) : 0;
  Workspace w{};
  w.metric = pieces.take<float>(p.batch, p.tokens, p.width);
  w.nearest.metric = w.metric;
  w.nearest.best = pieces.take<float>(p.batch, tiles, even.count);
  w.nearest.token = pieces.take<int>(p.batch, tiles, even.count);
  w.nearest.tiles = tiles;
  w.nearest.kept_index = pieces.take<int>(p.batch, p.tokens);
  w.nearest.counters = pieces.take<uint32_t>(p.batch);
  return w;
}

cudaError_t launch_select(const MatchParams& p, const Nearest& n, cudaStream_t stream) {
  const unsigned blocks = static_cast<unsigned>(p.batch);
  if (p.tokens <= kTailTokens) {
    select_kernel<4, 256><<<blocks, 256, 0, stream>>>(p, n);
  } else {
    select_kernel<32, 512><<<blocks, 512, 0, stream>>>(p, n);
  }
  return launched();
}

}  // namespace

size_t workspace_bytes(const MatchParams& p) {
  Pieces pieces(nullptr);
  take(p, pieces);
  return pieces.used();
}

cudaError_t launch_match(const MatchParams& p, void* workspace, cudaStream_t stream) {
  if (p.batch * p.tokens == 0) return cudaSuccess;
  if (p.tokens - p.first > kMaxPatches) return cudaErrorInvalidValue;
  Pieces pieces(workspace);
  Workspace w = take(p, pieces);
  const bool tail = p.tokens <= kTailTokens;
  if (w.nearest.tiles == 0) return launch_select(p, w.nearest, stream);
  FICOCO_TRY(launch_metric({p.key, p.batch, p.tokens, p.width, true, w.metric, w.nearest.counters}, stream));
  if (!tail) w.nearest.counters = nullptr;
  const dim3 grid(w.nearest.tiles, ceil_div(even_side(p).count, kTile), p.batch);
  const auto kernel = p.width % kPer<float> == 0 ? nearest_kernel<true> : nearest_kernel<false>;
  constexpr size_t kShared = sizeof(TileShared<float, kStages>);
  FICOCO_TRY(allow_shared(kernel, kShared));
  kernel<<<grid, kTileThreads, kShared, stream>>>(p, w.nearest);
  FICOCO_TRY(launched());
  return tail ? cudaSuccess : launch_select(p, w.nearest, stream);
}

}  // namespace ficoco
