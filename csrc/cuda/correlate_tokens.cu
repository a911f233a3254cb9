// Targets among candidates, by direct attention and by way of other tokens:
// C = gamma A[s, c] + (1 - gamma) A[s, o] diag(w) A[o, c], with `column` A[o, s]^T in place of A[s, o].
//
// Blocks of A: 64 rows and 64 columns a block of threads, all heads into one mean, as in correlate.cu. Then one kernel
// adds the others' rows to eight sources at a time. 2 B H d (r m + r R + R m) FLOPs for logits, for probabilities the
// softmax statistics of the rows too; 2 B r R m for the way; bound by arithmetic. Shared memory 76 KB (half), 71 KB
// (float).
#include "cuda/correlate.cuh"
#include "cuda/row_softmax.cuh"
#include "cuda/tile.cuh"

namespace ficoco {
namespace {

constexpr int kThreads = 256;
constexpr int kSources = 8;  // sources of one block when others are added

struct List {
  const int64_t* tokens;  // (B, count)
  int64_t count;
};

struct BlockParams {
  List rows, columns;
  int64_t keys, offset, width;
  float scale;
  bool causal;
  const bool* key_mask;
  RowSoftmax softmax;  // of the rows, for probabilities
  float* out;          // (B, rows, columns)
};

template <class T, bool kVector, bool kProbs>
__global__ void __launch_bounds__(kTileThreads, kProbs ? 2 : kTileBlocks<T>)
    attention_block_kernel(BlockParams p, View<T> query, View<T> key) {
  extern __shared__ __align__(128) unsigned char storage[];
  auto& shared = *reinterpret_cast<TileShared<T, kDeepStages<T>>*>(storage);
  using Sums = TileSums<T>;
  __shared__ int rows[kTile], columns[kTile];
  const int64_t j0 = static_cast<int64_t>(blockIdx.x) * kTile, i0 = static_cast<int64_t>(blockIdx.y) * kTile;
  const int64_t b = blockIdx.z, heads = query.heads;
  const int group = query.heads / key.heads;
  const int row_count = static_cast<int>(min(static_cast<int64_t>(kTile), p.rows.count - i0));
  const int column_count = static_cast<int>(min(static_cast<int64_t>(kTile), p.columns.count - j0));
  if (threadIdx.x < kTile) {
    const int i = threadIdx.x;
    const int64_t row = i < row_count ? p.rows.tokens[b * p.rows.count + i0 + i] : p.offset;
    const int64_t column = i < column_count ? p.columns.tokens[b * p.columns.count + j0 + i] : 0;
    assert(row >= p.offset && row < p.keys && "ficoco::correlate: a token's query is not there");
    assert(column >= 0 && column < p.keys && "ficoco::correlate: an index is no token");
    rows[i] = static_cast<int>(row);
    columns[i] = static_cast<int>(column);
  }
  __syncthreads();
  const int chunks = chunks_of(p.width);
  float mean[kProbs ? Sums::kRows : 1][kProbs ? Sums::kColumns : 1] = {};
  Sums sums;
  const auto load = [&](int h, int chunk, TileStep<T>& to) {
    const int64_t c = static_cast<int64_t>(chunk) * kTile;
    const int key_head = h / group;
    to.a.template load<kVector>([&](int i) { return query.row(b, h, rows[i] - p.offset); }, row_count, c, p.width);
    to.b.template load<kVector>([&](int j) { return key.row(b, key_head, columns[j]); }, column_count, c, p.width);
    if constexpr (kProbs) {
      const int64_t stats = (b * heads + h) * p.rows.count + i0;
      to.load_softmax(p.softmax.top, p.softmax.inverse, [&](int i) { return stats + i; }, row_count);
    }
  };
  walk(shared, query.heads, chunks, load, [&](int, int chunk, const TileStep<T>& from) {
    sums.add(from.a, from.b);
    if constexpr (kProbs) {
      if (chunk != chunks - 1) return;
#pragma unroll
      for (int i = 0; i < Sums::kRows; ++i) {
        const int at = Sums::row(i);
#pragma unroll
        for (int j = 0; j < Sums::kColumns; ++j) {
          if (!attends(p.causal, p.key_mask, p.keys, b, rows[at], columns[Sums::column(j)])) continue;
          mean[i][j] += softmax_term(sums.at(i, j), from.top[at], p.scale * kLog2e) * from.inverse[at];
        }
      }
      sums.clear();
    }
  });
  const float factor = (kProbs ? 1.f : p.scale) / static_cast<float>(heads);
  const int64_t first = (b * p.rows.count + i0) * p.columns.count + j0;
  store_tile<T>(p.out + first, p.columns.count, row_count, column_count, [&](int i, int j) {
    if constexpr (kProbs) {
      return mean[i][j] * factor;
    } else {
      return sums.at(i, j) * factor;
    }
  });
}

// direct[i][j] = gamma direct[i][j] + (1 - gamma) sum over t of weight[t] way[i][t] from[t][j], t in order. `way` lies
// as [t][i] with `column`.
__global__ void __launch_bounds__(kThreads, 2)
    add_way_kernel(TokenLinksParams p, const float* way, const float* from, float* direct) {
  const int64_t j = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, b = blockIdx.z;
  const int64_t i0 = static_cast<int64_t>(blockIdx.y) * kSources, m = p.candidate_count, others = p.other_count;
  if (j >= m) return;
  const int count = static_cast<int>(min(static_cast<int64_t>(kSources), p.r - i0));
  const int64_t source_step = p.column ? 1 : others, other_step = p.column ? p.r : 1;
  way += b * p.r * others + i0 * source_step;
  float sums[kSources] = {};
  for (int64_t t = 0; t < others; ++t) {
    const float x = p.others_weight[b * others + t] * from[(b * others + t) * m + j];
#pragma unroll
    for (int i = 0; i < kSources; ++i) {
      if (i < count) sums[i] = fmaf(way[i * source_step + t * other_step], x, sums[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kSources; ++i) {
    if (i >= count) break;
    float& value = direct[(b * p.r + i0 + i) * m + j];
    value = p.gamma * value + (1.f - p.gamma) * sums[i];
  }
}

struct Workspace {
  float *direct, *way, *from;
  RowSoftmax sources, others;
};

Workspace take(const TokenLinksParams& p, Pieces& pieces) {
  Workspace w{};
  const auto softmax = [&](int64_t count) { return take_row_softmax(pieces, p.batch, p.query.heads, count, p.keys); };
  w.direct = pieces.take<float>(p.batch, p.r, p.candidate_count);
  w.way = pieces.take<float>(p.batch, p.r, p.other_count);
  w.from = pieces.take<float>(p.batch, p.other_count, p.candidate_count);
  if (p.probs) {
    w.sources = softmax(p.r);
    w.others = softmax(p.other_count);
  }
  return w;
}

cudaError_t launch_rows(const TokenLinksParams& p, const List& rows, const RowSoftmax& out, cudaStream_t stream) {
  RowSoftmaxParams params{p.query, p.key, rows.tokens, p.batch, p.keys, p.width, rows.count, 0, p.scale, out};
  params.offset = p.offset;
  params.causal = p.causal;
  params.key_mask = p.key_mask;
  return launch_row_softmax(params, stream);
}

cudaError_t launch_block(const TokenLinksParams& p, const List& rows, const List& columns, const RowSoftmax& softmax,
                         float* out, cudaStream_t stream) {
  if (rows.count * columns.count == 0) return cudaSuccess;
  const BlockParams params{rows, columns, p.keys, p.offset, p.width, p.scale, p.causal, p.key_mask, softmax, out};
  const bool whole = vectorised(p.query, p.width) && vectorised(p.key, p.width);
  return with_type(p.query.dtype, whole, [&](auto type, auto vector) {
    using T = decltype(type);
    constexpr bool kVector = decltype(vector)::value;
    const auto kernel = p.probs ? attention_block_kernel<T, kVector, true> : attention_block_kernel<T, kVector, false>;
    constexpr size_t kShared = sizeof(TileShared<T, kDeepStages<T>>);
    FICOCO_TRY(allow_shared(kernel, kShared));
    const dim3 grid(ceil_div(columns.count, kTile), ceil_div(rows.count, kTile), p.batch);
    kernel<<<grid, kTileThreads, kShared, stream>>>(params, view<T>(p.query), view<T>(p.key));
    return launched();
  });
}

}  // namespace

size_t workspace_bytes(const TokenLinksParams& p) {
  Pieces pieces(nullptr);
  take(p, pieces);
  return pieces.used();
}

cudaError_t launch_correlate_tokens(const TokenLinksParams& p, void* workspace, cudaStream_t stream) {
  if (p.batch * p.r * p.k == 0) return cudaSuccess;
  Pieces pieces(workspace);
  const Workspace w = take(p, pieces);
  const List sources{p.sources, p.r}, candidates{p.candidates, p.candidate_count}, others{p.others, p.other_count};
  if (p.probs) FICOCO_TRY(launch_rows(p, sources, w.sources, stream));
  FICOCO_TRY(launch_block(p, sources, candidates, w.sources, w.direct, stream));
  if (p.gamma < 1.f) {
    if (p.probs) FICOCO_TRY(launch_rows(p, others, w.others, stream));
    FICOCO_TRY(p.column ? launch_block(p, others, sources, w.others, w.way, stream)
                        : launch_block(p, sources, others, w.sources, w.way, stream));
    FICOCO_TRY(launch_block(p, others, candidates, w.others, w.from, stream));
    const dim3 grid(ceil_div(p.candidate_count, kThreads), ceil_div(p.r, kSources), p.batch);
    add_way_kernel<<<grid, kThreads, 0, stream>>>(p, w.way, w.from, w.direct);
    FICOCO_TRY(launched());
  }
  CorrelateParams choice{};
  choice.batch = p.batch;
  choice.r = p.r;
  choice.kept_count = p.candidate_count;
  choice.k = p.k;
  choice.alpha = p.alpha;
  choice.targets = p.targets;
  choice.weights = p.weights;
  return launch_choose(choice, w.direct, stream);
}

}  // namespace ficoco
