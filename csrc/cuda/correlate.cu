// For each source the k kept patches it correlates with most, and weights that sum to 1.
//
// A block owns 64 sources and 64 kept patches of an image and walks over all channels of all heads. Logits of all heads
// go into one sum. Probabilities are made head by head from the sources' softmax statistics. For each source the block
// finds the k best of its patches in registers and lists them. The last block of an image, or a second kernel, unites
// the lists, with eight or 32 lanes a source. For more than 8 targets a source, all correlations (B, r, M) are written,
// and the second kernel chooses from them.
//
// 2 B r M H d FLOPs; probabilities 2 B r (M + N) H d. Half precision runs on tensor cores, float by FMA. The sources' q
// is read once for every 64 kept patches, the kept k once for every 64 sources. Both come from the second-level cache
// if the statistics were computed just before. Bound by latency at B = 1, else by memory: four steps are in flight at
// once, eight where there are few blocks. Shared memory: 76 KB (half; few blocks: 148 KB), 71 KB (float).
#include "cuda/choose.cuh"
#include "cuda/correlate.cuh"
#include "cuda/metric.cuh"
#include "cuda/row_softmax.cuh"
#include "cuda/tile.cuh"

namespace ficoco {
namespace {

constexpr int64_t kTailSources = 128;  // more than these are shared among blocks of a second kernel
constexpr int kThreads = 256;

constexpr int64_t kListed = 8;        // targets a source that a tile lists
constexpr int kGroup = 8;             // lanes that choose for one source in the last block
constexpr int64_t kLoneBlocks = 128;  // a grid of so few has a multiprocessor for each block
constexpr int kChoosers = 64;         // threads of a block of the second kernel

struct ScoreParams {
  CorrelateParams p;
  float factor;                // multiplies a sum over heads
  const float *top, *inverse;  // for probabilities: (B, H, r) of the sources, or (B, H, N) of all tokens
  bool of_all;
  float* scores;       // (B, r, candidates), or nullptr: there are lists
  Ranked* lists;       // (B, r, listed)
  int listed;          // the best k of every 64 or 32 candidates
  uint32_t* counters;  // (B) or nullptr
};

__host__ __device__ __forceinline__ int64_t candidates_of(const CorrelateParams& p) { return p.kept_count - p.first; }

// One block makes the image's choices. Its shared memory is free and has room for `numbers`: it loads the lists of as
// many sources as fit.
__device__ void choose_all(const ScoreParams& s, int64_t b, Ranked* room, int numbers) {
  const int r = static_cast<int>(s.p.r), fit = numbers / s.listed, group = threadIdx.x / kGroup;
  for (int first = 0; first < r; first += fit) {
    const int here = min(fit, r - first);
    const Ranked* from = s.lists + (b * r + first) * s.listed;
    for (int i = threadIdx.x; i < here * s.listed; i += kThreads) copy_async<8>(room + i, from + i, true);
    commit_copies();
    wait_for_copies<0>();
    __syncthreads();
    for (int i0 = 0; i0 < here; i0 += kThreads / kGroup) {
      const int i = min(i0 + group, here - 1);
      choose_targets<kGroup>(s.p, room + i * s.listed, s.listed, b * r + first + i, i0 + group < here);
    }
    __syncthreads();
  }
}

// The k best of each row of a tile, one after the other. `lists` begins with the list of the tile's first row; warps
// that share a row have a list each, side by side. value(i, j) belongs to the thread's row(i) and column(j);
// `first_column` is the index of column 0.
template <class T, class Value>
__device__ __forceinline__ void list_best(Ranked* lists, int64_t stride, int k, int rows, int columns, int first_column,
                                          const Value& value) {
  using Sums = TileSums<T>;
#pragma unroll
  for (int i = 0; i < Sums::kRows; ++i) {
    Ranked* list = lists + Sums::row(i) * stride + Sums::row_warp() * k;
    Ranked last = ~Ranked{0};
    for (int t = 0; t < k; ++t) {
      Ranked best = 0;
#pragma unroll
      for (int j = 0; j < Sums::kColumns; ++j) {
        const Ranked one = ranked(value(i, j), first_column + Sums::column(j));
        if (Sums::column(j) < columns && one < last) best = max(best, one);
      }
      last = best = best_of_lanes<Sums::kAcross>(best);
      if (threadIdx.x % Sums::kAcross == 0 && Sums::row(i) < rows) list[t] = best;
    }
  }
}

template <class T, bool kVector, bool kProbs, int kAhead>
__global__ void __launch_bounds__(kTileThreads, kAhead == kLoneStages ? 1
                                                : kProbs              ? 2
                                                                      : kTileBlocks<T>)
    score_kernel(ScoreParams s, View<T> query, View<T> key) {
  extern __shared__ __align__(128) unsigned char storage[];
  auto& shared = *reinterpret_cast<TileShared<T, kAhead>*>(storage);
  using Sums = TileSums<T>;
  const CorrelateParams& p = s.p;
  const int64_t j0 = static_cast<int64_t>(blockIdx.x) * kTile, i0 = static_cast<int64_t>(blockIdx.y) * kTile;
  const int64_t b = blockIdx.z, candidates = candidates_of(p);
  const int group = query.heads / key.heads;
  const int rows = static_cast<int>(min(static_cast<int64_t>(kTile), p.r - i0));
  const int columns = static_cast<int>(min(static_cast<int64_t>(kTile), candidates - j0));
  __shared__ int sources[kTile], kept[kTile];
  if (threadIdx.x < kTile) {
    const int i = threadIdx.x;
    const int64_t source = i < rows ? p.sources[b * p.r + i0 + i] : 0;
    const int64_t candidate = i < columns ? p.kept[b * p.kept_count + p.first + j0 + i] : 0;
    assert(source >= 0 && source < p.tokens && "ficoco::correlate: a source is no token");
    assert(candidate >= 0 && candidate < p.tokens && "ficoco::correlate: a kept index is no token");
    sources[i] = static_cast<int>(source);
    kept[i] = static_cast<int>(candidate);
  }
  __syncthreads();
  const int chunks = chunks_of(p.width);
  float mean[kProbs ? Sums::kRows : 1][kProbs ? Sums::kColumns : 1] = {};
  Sums sums;
  const auto load = [&](int h, int chunk, TileStep<T>& to) {
    const int64_t c = static_cast<int64_t>(chunk) * kTile;
    const int key_head = h / group;
    to.a.template load<kVector>([&](int i) { return query.row(b, h, sources[i]); }, rows, c, p.width);
    to.b.template load<kVector>([&](int j) { return key.row(b, key_head, kept[j]); }, columns, c, p.width);
    if constexpr (kProbs) {
      const int64_t head = (b * query.heads + h) * (s.of_all ? p.tokens : p.r);
      to.load_softmax(s.top, s.inverse, [&](int i) { return head + (s.of_all ? sources[i] : i0 + i); }, rows);
    }
  };
  walk(shared, query.heads, chunks, load, [&](int, int chunk, const TileStep<T>& from) {
    sums.add(from.a, from.b);
    if constexpr (kProbs) {
      if (chunk != chunks - 1) return;
#pragma unroll
      for (int i = 0; i < Sums::kRows; ++i) {
        const float top = from.top[Sums::row(i)], inverse = from.inverse[Sums::row(i)];
#pragma unroll
        for (int j = 0; j < Sums::kColumns; ++j) {
          mean[i][j] += softmax_term(sums.at(i, j), top, p.scale * kLog2e) * inverse;
        }
      }
      sums.clear();
    }
  });
  const auto value = [&](int i, int j) {
    if constexpr (kProbs) {
      return mean[i][j] * s.factor;
    } else {
      return sums.at(i, j) * s.factor;
    }
  };
  if (s.scores) {
    store_tile<T>(s.scores + (b * p.r + i0) * candidates + j0, candidates, rows, columns, value);
    return;
  }
  const int k = static_cast<int>(p.k);
  list_best<T>(s.lists + (b * p.r + i0) * s.listed + blockIdx.x * Sums::kRowWarps * k, s.listed, k, rows, columns,
               static_cast<int>(j0), value);
  if (!s.counters || !last_block(s.counters + b, gridDim.x * gridDim.y)) return;
  choose_all(s, b, reinterpret_cast<Ranked*>(storage), sizeof(shared) / sizeof(Ranked));
}

// One warp a source.
template <class Score>
__global__ void __launch_bounds__(kChoosers) choose_kernel(CorrelateParams p, const Score* scores, int count) {
  constexpr int kSources = kChoosers / kWarp;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kSources + threadIdx.x / kWarp, at = blockIdx.y * p.r + i;
  if (i < p.r) choose_targets<kWarp>(p, scores + at * count, count, at, true);
}

template <class Score>
cudaError_t launch_choose(const CorrelateParams& p, const Score* scores, int64_t count, cudaStream_t stream) {
  const dim3 grid(ceil_div(p.r, kChoosers / kWarp), p.batch);
  choose_kernel<Score><<<grid, kChoosers, 0, stream>>>(p, scores, static_cast<int>(count));
  return launched();
}

// One block a source: its row of the map, averaged over heads, then its targets.
template <class T>
__global__ void __launch_bounds__(kThreads, 2) map_kernel(CorrelateParams p, View<T> attn, float* scores) {
  const int64_t i = blockIdx.x, b = blockIdx.y, candidates = candidates_of(p), source = p.sources[b * p.r + i];
  assert(source >= 0 && source < p.tokens && "ficoco::correlate: a source is no token");
  for (int64_t j = threadIdx.x; j < candidates; j += kThreads) {
    const int64_t kept = p.kept[b * p.kept_count + p.first + j];
    assert(kept >= 0 && kept < p.tokens && "ficoco::correlate: a kept index is no token");
    float sum = 0.f;
    for (int h = 0; h < attn.heads; ++h) sum += to_float(attn.row(b, h, source)[kept]);
    scores[(b * p.r + i) * candidates + j] = sum / static_cast<float>(attn.heads);
  }
  __syncthreads();
  const int64_t at = b * p.r + i;
  if (threadIdx.x < kWarp) choose_targets<kWarp>(p, scores + at * candidates, static_cast<int>(candidates), at, true);
}

struct Workspace {
  float *scores, *metric;
  RowSoftmax rows;
  Ranked* lists;
};

bool lists(const CorrelateParams& p) { return p.k <= kListed && p.by != Correlation::kMap; }

// The entries of a source's lists. Keys are compared as float.
int64_t listed(const CorrelateParams& p) {
  const bool half = p.by != Correlation::kKey && p.key.dtype != Dtype::kFloat;
  const int64_t warps = half ? TileSums<__half>::kRowWarps : TileSums<float>::kRowWarps;
  return ceil_div(candidates_of(p), kTile) * warps * p.k;
}

Workspace take(const CorrelateParams& p, Pieces& pieces) {
  Workspace w{};
  if (lists(p)) {
    w.lists = pieces.take<Ranked>(p.batch, p.r, listed(p));
  } else {
    w.scores = pieces.take<float>(p.batch, p.r, candidates_of(p));
  }
  if (p.by == Correlation::kKey) w.metric = pieces.take<float>(p.batch, p.tokens, p.width);
  if (p.by == Correlation::kProbs) {
    w.rows = take_row_softmax(pieces, p.batch, p.query.heads, p.r, p.tokens);
  }
  return w;
}

template <class T, bool kVector, bool kProbs, int kAhead>
cudaError_t launch_scores(const ScoreParams& s, const dim3& grid, cudaStream_t stream) {
  const auto kernel = score_kernel<T, kVector, kProbs, kAhead>;
  constexpr size_t kShared = sizeof(TileShared<T, kAhead>);
  FICOCO_TRY(allow_shared(kernel, kShared));
  kernel<<<grid, kTileThreads, kShared, stream>>>(s, view<T>(s.p.query), view<T>(s.p.key));
  return launched();
}

template <bool kProbs>
cudaError_t launch_scores(const ScoreParams& s, cudaStream_t stream) {
  const CorrelateParams& p = s.p;
  const dim3 grid(ceil_div(candidates_of(p), kTile), ceil_div(p.r, kTile), p.batch);
  bool lone = static_cast<int64_t>(grid.x) * grid.y * grid.z <= kLoneBlocks;
  FICOCO_TRY(
      with_type(p.key.dtype, vectorised(p.query, p.width) && vectorised(p.key, p.width), [&](auto type, auto vector) {
        using T = decltype(type);
        constexpr bool kVector = decltype(vector)::value;
        if constexpr (kVector && sizeof(T) == 2) {
          if (lone) FICOCO_TRY(has_shared(sizeof(TileShared<T, kLoneStages>) + kStaticShared, lone));
          if (lone) return launch_scores<T, kVector, kProbs, kLoneStages>(s, grid, stream);
        }
        return launch_scores<T, kVector, kProbs, kDeepStages<T>>(s, grid, stream);
      }));
  if (s.counters) return cudaSuccess;
  return s.scores ? launch_choose(p, s.scores, candidates_of(p), stream) : launch_choose(p, s.lists, s.listed, stream);
}

}  // namespace

cudaError_t launch_choose(const CorrelateParams& p, const float* scores, cudaStream_t stream) {
  return launch_choose(p, scores, candidates_of(p), stream);
}

void take_correlate_workspace(const CorrelateParams& p, Pieces& pieces) { take(p, pieces); }

// The list of one source must fit into the tail's shared memory.
bool can_choose_in_tail(const CorrelateParams& p) { return p.r <= kTailSources && lists(p) && listed(p) <= 8192; }

cudaError_t launch_correlate(const CorrelateParams& p, const KnownSoftmax& known, uint32_t* counters, Pieces& pieces,
                             cudaStream_t stream) {
  const Workspace w = take(p, pieces);
  if (p.batch * p.r * p.k == 0) return cudaSuccess;
  const bool of_all = known.top != nullptr;
  ScoreParams s{p,
                p.scale / static_cast<float>(p.query.heads),
                of_all ? known.top : w.rows.top,
                of_all ? known.inverse : w.rows.inverse,
                of_all,
                w.scores,
                w.lists,
                static_cast<int>(listed(p)),
                can_choose_in_tail(p) ? counters : nullptr};
  switch (p.by) {
    case Correlation::kLogits: return launch_scores<false>(s, stream);
    case Correlation::kProbs:
      if (!of_all) {
        FICOCO_TRY(launch_row_softmax(
            {p.query, p.key, p.sources, p.batch, p.tokens, p.width, p.r, p.first, p.scale, w.rows}, stream));
      }
      s.factor = 1.f / static_cast<float>(p.query.heads);
      return launch_scores<true>(s, stream);
    case Correlation::kKey:
      FICOCO_TRY(launch_metric({p.key, p.batch, p.tokens, p.width, true, w.metric}, stream));
      s.p.query = s.p.key = {w.metric, Dtype::kFloat, 1, p.tokens * p.width, 0, p.width};
      s.factor = 1.f;
      return launch_scores<false>(s, stream);
    case Correlation::kMap:
      return with_type(p.attn.dtype, [&](auto type) {
        using T = decltype(type);
        map_kernel<T><<<dim3(p.r, p.batch), kThreads, 0, stream>>>(p, view<T>(p.attn), w.scores);
        return launched();
      });
  }
  return cudaErrorInvalidValue;
}

size_t workspace_bytes(const CorrelateParams& p) {
  Pieces pieces(nullptr);
  take(p, pieces);
  return pieces.used();
}

cudaError_t launch_correlate(const CorrelateParams& p, void* workspace, cudaStream_t stream) {
  Pieces pieces(workspace);
  return launch_correlate(p, {}, nullptr, pieces, stream);
}

}  // namespace ficoco
