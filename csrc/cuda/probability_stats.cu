// Class attention and patch attention from probabilities, without an N x N map: first the softmax statistics of every
// query row (row_softmax.cu), then what follows from them.
//
//   row:    the mean over the patches comes out of the statistics themselves
//   column: q k^T once more; a block owns 64 keys and adds every probability to its key's sum
//
// Then a thread owns a key: it adds up the heads, and makes the class token's row from its products, which were kept.
// Within a reduction one block an image does this and filters the image at once.
//
// 2 B H N^2 d FLOPs (column: 4): bound by arithmetic. Memory O(H N). Shared memory as row_softmax.cu.
#include "cuda/filter.cuh"
#include "cuda/logits_stats.cuh"
#include "cuda/row_softmax.cuh"
#include "cuda/tile.cuh"

namespace ficoco {
namespace {

struct ColumnParams {
  int64_t tokens, width, first;
  float scale;
  const float *top, *inverse;  // (B, H, N)
  float* sums;                 // (B, H, N) over the patches' rows
};

// A block has 64 keys and walks over all queries: the products' rows are keys here, their columns queries.
template <class T, bool kVector>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks<T>)
    column_kernel(ColumnParams p, View<T> query, View<T> key) {
  extern __shared__ __align__(128) unsigned char storage[];
  auto& shared = *reinterpret_cast<TileShared<T, kStages>*>(storage);
  using Sums = TileSums<T>;
  const int64_t j0 = static_cast<int64_t>(blockIdx.x) * kTile, h = blockIdx.y, b = blockIdx.z;
  const int keys = static_cast<int>(min(static_cast<int64_t>(kTile), p.tokens - j0));
  const int64_t key_head = h / (query.heads / key.heads), base = (b * query.heads + h) * p.tokens;
  const float scale_log2 = p.scale * kLog2e;
  const int turns = static_cast<int>(ceil_div(p.tokens, kTile)), chunks = chunks_of(p.width);
  const int key_turns = turns_to_load<kStages>(chunks);
  float total[Sums::kRows] = {};
  Sums sums;
  const auto load = [&](int turn, int chunk, TileStep<T>& to) {
    const int64_t i0 = static_cast<int64_t>(turn) * kTile, c = static_cast<int64_t>(chunk) * kTile;
    const int queries = static_cast<int>(min(static_cast<int64_t>(kTile), p.tokens - i0));
    if (turn < key_turns) {
      to.a.template load<kVector>([&](int j) { return key.row(b, key_head, j0 + j); }, keys, c, p.width);
    }
    to.b.template load<kVector>([&](int i) { return query.row(b, h, i0 + i); }, queries, c, p.width);
    to.load_softmax(p.top, p.inverse, [&](int i) { return i0 + i < p.first ? -1 : base + i0 + i; }, queries);
  };
  walk(shared, turns, chunks, load, [&](int, int chunk, const TileStep<T>& from) {
    sums.add(from.a, from.b);
    if (chunk != chunks - 1) return;
#pragma unroll
    for (int j = 0; j < Sums::kColumns; ++j) {
      const float top = from.top[Sums::column(j)], inverse = from.inverse[Sums::column(j)];
#pragma unroll
      for (int i = 0; i < Sums::kRows; ++i) {
        const float share = softmax_term(sums.at(i, j), top, scale_log2) * inverse;
        total[i] += inverse == 0.f ? 0.f : share;  // a row of the class token, or a column that is no key
      }
    }
    sums.clear();
  });
  add_across<T>(total, [&](int row, float sum) {
    if (row < keys) p.sums[base + j0 + row] = sum;
  });
}

struct FinishParams {
  int64_t tokens, heads, first, stat_rows;  // stat_rows: rows that have statistics, N or 1
  float scale;
  const float *top, *inverse;  // (B, H, stat_rows)
  const float* products;       // (B, H, N) of the class token's query
  const float* patch;          // (B, H, N): what to add over heads for patch attention, or nullptr
  float *class_attention, *patch_attention;
};

// Patch i of image b: heads in order. The results are also written.
__device__ __forceinline__ void finish(const FinishParams& p, int64_t b, int64_t i, float& class_mean,
                                       float& patch_mean) {
  const int64_t patches = p.tokens - p.first, at = b * p.heads * p.tokens + i + p.first;
  const int heads = static_cast<int>(p.heads);
  float class_sum = 0.f, patch_sum = 0.f;
#pragma unroll 8
  for (int h = 0; h < heads; ++h) {
    const int64_t row = (b * p.heads + h) * p.stat_rows;
    if (p.first) {
      class_sum += softmax_term(p.products[at + h * p.tokens], p.top[row], p.scale * kLog2e) * p.inverse[row];
    }
    if (p.patch) patch_sum += p.patch[at + h * p.tokens];
  }
  class_mean = class_sum / static_cast<float>(p.heads);
  patch_mean = patch_sum / (static_cast<float>(p.heads) * static_cast<float>(patches));
  if (p.first) p.class_attention[b * patches + i] = class_mean;
  if (p.patch) p.patch_attention[b * patches + i] = patch_mean;
}

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads, 2) finish_kernel(FinishParams p) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  float class_mean, patch_mean;
  if (i < p.tokens - p.first) finish(p, blockIdx.y, i, class_mean, patch_mean);
}

// One block an image, one thread a patch; it then filters the image. Sets its counter to 0 for a later kernel.
__global__ void __launch_bounds__(kFusedPatches, 1)
    finish_filter_kernel(FinishParams p, FilterParams filter, uint32_t* counters) {
  __shared__ FilterShared shared;
  extern __shared__ Cell cells[];
  const int64_t b = blockIdx.x;
  if (threadIdx.x == 0) counters[b] = 0;
  float cls[1] = {}, patch[1] = {};
  if (threadIdx.x < p.tokens - p.first) finish(p, b, threadIdx.x, cls[0], patch[0]);
  filter_block<1>(filter, b, patch, cls, cells, shared);
}

struct Workspace {
  RowSoftmax rows;
  float *patch, *products;
};

int64_t stat_rows(const AttentionStatsParams& p) { return p.patches ? p.tokens : 1; }

Workspace take(const AttentionStatsParams& p, Pieces& pieces) {
  Workspace w{};
  w.rows = take_row_softmax(pieces, p.batch, p.query.heads, stat_rows(p), p.tokens);
  if (p.patches) w.patch = pieces.take<float>(p.batch, p.query.heads, p.tokens);
  if (p.first) w.products = pieces.take<float>(p.batch, p.query.heads, p.tokens);
  w.rows.patch_sum = p.patches && !p.column ? w.patch : nullptr;
  w.rows.products = w.products;
  return w;
}

cudaError_t launch_columns(const AttentionStatsParams& p, const Workspace& w, cudaStream_t stream) {
  const bool whole = vectorised(p.query, p.width) && vectorised(p.key, p.width);
  return with_type(p.query.dtype, whole, [&](auto type, auto vector) {
    using T = decltype(type);
    const auto kernel = column_kernel<T, decltype(vector)::value>;
    const ColumnParams params{p.tokens, p.width, p.first, p.scale, w.rows.top, w.rows.inverse, w.patch};
    constexpr size_t kShared = sizeof(TileShared<T, kStages>);
    FICOCO_TRY(allow_shared(kernel, kShared));
    const dim3 grid(ceil_div(p.tokens, kTile), p.query.heads, p.batch);
    kernel<<<grid, kTileThreads, kShared, stream>>>(params, view<T>(p.query), view<T>(p.key));
    return launched();
  });
}

}  // namespace

void take_probability_workspace(const AttentionStatsParams& p, Pieces& pieces) { take(p, pieces); }

cudaError_t launch_probability_stats(const AttentionStatsParams& p, const FilterParams* filter, uint32_t* counters,
                                     Pieces& pieces, KnownSoftmax* known, cudaStream_t stream) {
  const Workspace w = take(p, pieces);
  const RowSoftmaxParams rows{p.query, p.key,        nullptr, p.batch, p.tokens,
                              p.width, stat_rows(p), p.first, p.scale, w.rows};
  FICOCO_TRY(launch_row_softmax(rows, stream));
  if (p.patches && p.column) FICOCO_TRY(launch_columns(p, w, stream));
  if (known && p.patches) *known = {w.rows.top, w.rows.inverse};
  const FinishParams params{p.tokens,       p.query.heads, p.first, stat_rows(p),      p.scale,          w.rows.top,
                            w.rows.inverse, w.products,    w.patch, p.class_attention, p.patch_attention};
  if (filter) {
    const size_t cells = filter_cells(*filter) * sizeof(Cell);
    finish_filter_kernel<<<p.batch, round_up(p.tokens - p.first, kWarp), cells, stream>>>(params, *filter, counters);
  } else {
    finish_kernel<<<dim3(ceil_div(p.tokens - p.first, kThreads), p.batch), kThreads, 0, stream>>>(params);
  }
  return launched();
}

}  // namespace ficoco
