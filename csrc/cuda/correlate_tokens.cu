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

struct List {
  const int64_t* tokens;  // (B, count)
  int64_t count;
};

// A block of A, rows x columns of each image.
struct BlockOfA {
  List rows, columns;
  RowSoftmax softmax;                       // of the rows, for probabilities
  const float *row_weight, *column_weight;  // (B, rows), (B, columns), or nullptr for 1
  float* out;
  int64_t image_step, row_step, column_step;  // between entries of `out`
  int tiles, tile_columns;                    // of an image: all, and in a row of them
};

constexpr int kBlocksOfA = 3;

struct BlockParams {
  BlockOfA blocks[kBlocksOfA];  // of which those without tiles are not there
  int64_t keys, offset, width;
  float scale;
  bool causal;
  const bool* key_mask;
};

template <class T, bool kVector, bool kProbs>
__global__ void __launch_bounds__(kTileThreads, kProbs ? 2 : kTileBlocks<T>)
    attention_block_kernel(const __grid_constant__ BlockParams p, View<T> query, View<T> key) {
  extern __shared__ __align__(128) unsigned char storage[];
  auto& shared = *reinterpret_cast<TileShared<T, kDeepStages<T>>*>(storage);
  using Sums = TileSums<T>;
  __shared__ int rows[kTile], columns[kTile];
  int tile = static_cast<int>(blockIdx.x), block = 0;
  for (; tile >= p.blocks[block].tiles; ++block) tile -= p.blocks[block].tiles;
  const BlockOfA& of = p.blocks[block];
  const int64_t j0 = static_cast<int64_t>(tile % of.tile_columns) * kTile;
  const int64_t i0 = static_cast<int64_t>(tile / of.tile_columns) * kTile, b = blockIdx.y, heads = query.heads;
  const int group = query.heads / key.heads;
  const int row_count = static_cast<int>(min(static_cast<int64_t>(kTile), of.rows.count - i0));
  const int column_count = static_cast<int>(min(static_cast<int64_t>(kTile), of.columns.count - j0));
  if (threadIdx.x < kTile) {
    const int i = threadIdx.x;
    const int64_t row = i < row_count ? of.rows.tokens[b * of.rows.count + i0 + i] : p.offset;
    const int64_t column = i < column_count ? of.columns.tokens[b * of.columns.count + j0 + i] : 0;
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
      const int64_t stats = (b * heads + h) * of.rows.count + i0;
      to.load_softmax(of.softmax.top, of.softmax.inverse, [&](int i) { return stats + i; }, row_count);
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
  float* out = of.out + b * of.image_step;
#pragma unroll
  for (int i = 0; i < Sums::kRows; ++i) {
#pragma unroll
    for (int j = 0; j < Sums::kColumns; ++j) {
      if (Sums::row(i) >= row_count || Sums::column(j) >= column_count) continue;
      const int64_t row = i0 + Sums::row(i), column = j0 + Sums::column(j);
      float value = factor;
      if constexpr (kProbs) {
        value *= mean[i][j];
      } else {
        value *= sums.at(i, j);
      }
      if (of.row_weight) value *= of.row_weight[b * of.rows.count + row];
      if (of.column_weight) value *= of.column_weight[b * of.columns.count + column];
      out[row * of.row_step + column * of.column_step] = value;
    }
  }
}

constexpr int kWaySources = 32, kWayColumns = 64, kWayOthers = 32;  // of one block, the others at a time
constexpr int kWayThreads = kWaySources * kWayColumns / 16;

struct WayStep {
  float way[kWayOthers][kWaySources], from[kWayOthers][kWayColumns];
};

// direct[i][j] = gamma direct[i][j] + (1 - gamma) sum over t of way[t][i] from[t][j], t in order. A thread has four
// sources and four candidates. Rows of `way` and `from` begin every `way_step` and `from_step`, multiples of four.
__global__ void __launch_bounds__(kWayThreads, 4) add_way_kernel(TokenLinksParams p, const float* way, int64_t way_step,
                                                                 const float* from, int64_t from_step, float* direct) {
  __shared__ __align__(16) WayStep steps[2];
  const int64_t j0 = static_cast<int64_t>(blockIdx.x) * kWayColumns,
                i0 = static_cast<int64_t>(blockIdx.y) * kWaySources;
  const int64_t b = blockIdx.z;
  const int others = static_cast<int>(p.other_count);
  way += b * others * way_step + i0;
  from += b * others * from_step + j0;
  const int sources = static_cast<int>(min(static_cast<int64_t>(kWaySources), p.r - i0));
  const int candidates = static_cast<int>(min(static_cast<int64_t>(kWayColumns), p.candidate_count - j0));
  const auto load = [&](int t0, WayStep& to) {
    constexpr int kWayPacks = kWaySources / 4, kFromPacks = kWayColumns / 4;
#pragma unroll
    for (int i = threadIdx.x; i < kWayOthers * kWayPacks; i += kWayThreads) {
      const int t = i / kWayPacks, at = i % kWayPacks * 4;
      const bool exists = t0 + t < others && at < sources;
      copy_async<16>(&to.way[t][at], exists ? way + (t0 + t) * way_step + at : way, exists);
    }
#pragma unroll
    for (int i = threadIdx.x; i < kWayOthers * kFromPacks; i += kWayThreads) {
      const int t = i / kFromPacks, at = i % kFromPacks * 4;
      const bool exists = t0 + t < others && at < candidates;
      copy_async<16>(&to.from[t][at], exists ? from + (t0 + t) * from_step + at : from, exists);
    }
    commit_copies();
  };
  const int row = threadIdx.x / (kWayColumns / 4) * 4, column = threadIdx.x % (kWayColumns / 4) * 4;
  float sums[4][4] = {};
  load(0, steps[0]);
  for (int t0 = 0, stage = 0; t0 < others; t0 += kWayOthers, stage ^= 1) {
    load(t0 + kWayOthers, steps[stage ^ 1]);  // zeros behind the last
    wait_for_copies<1>();
    __syncthreads();
#pragma unroll 8
    for (int t = 0; t < kWayOthers; ++t) {
      const float4 w = *reinterpret_cast<const float4*>(&steps[stage].way[t][row]);
      const float4 f = *reinterpret_cast<const float4*>(&steps[stage].from[t][column]);
      const float x[4] = {w.x, w.y, w.z, w.w}, y[4] = {f.x, f.y, f.z, f.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] = fmaf(x[i], y[j], sums[i][j]);
      }
    }
    __syncthreads();
  }
  wait_for_copies<0>();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (row + i >= sources || column + j >= candidates) continue;
      float& value = direct[(b * p.r + i0 + row + i) * p.candidate_count + j0 + column + j];
      value = p.gamma * value + (1.f - p.gamma) * sums[i][j];
    }
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
  w.way = pieces.take<float>(p.batch, p.other_count, round_up(p.r, 4));
  w.from = pieces.take<float>(p.batch, p.other_count, round_up(p.candidate_count, 4));
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

BlockOfA block_of(const List& rows, const List& columns, const RowSoftmax& softmax, float* out, int64_t row_step) {
  const int64_t across = ceil_div(columns.count, kTile), tiles = across * ceil_div(rows.count, kTile);
  return {rows,
          columns,
          softmax,
          nullptr,
          nullptr,
          out,
          rows.count * row_step,
          row_step,
          1,
          static_cast<int>(tiles),
          static_cast<int>(across)};
}

// The tiles of all blocks of A, which do not need each other, in one grid.
cudaError_t launch_blocks(const TokenLinksParams& p, const BlockParams& params, cudaStream_t stream) {
  int64_t tiles = 0;
  for (const BlockOfA& block : params.blocks) tiles += block.tiles;
  if (tiles == 0) return cudaSuccess;
  const bool whole = vectorised(p.query, p.width) && vectorised(p.key, p.width);
  return with_type(p.query.dtype, whole, [&](auto type, auto vector) {
    using T = decltype(type);
    constexpr bool kVector = decltype(vector)::value;
    const auto kernel = p.probs ? attention_block_kernel<T, kVector, true> : attention_block_kernel<T, kVector, false>;
    constexpr size_t kShared = sizeof(TileShared<T, kDeepStages<T>>);
    FICOCO_TRY(allow_shared(kernel, kShared));
    kernel<<<dim3(tiles, p.batch), kTileThreads, kShared, stream>>>(params, view<T>(p.query), view<T>(p.key));
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
  const int64_t way_step = round_up(p.r, 4), from_step = round_up(p.candidate_count, 4);
  BlockParams params{{}, p.keys, p.offset, p.width, p.scale, p.causal, p.key_mask};
  if (p.probs) FICOCO_TRY(launch_rows(p, sources, w.sources, stream));
  params.blocks[0] = block_of(sources, candidates, w.sources, w.direct, p.candidate_count);
  if (p.gamma < 1.f) {
    if (p.probs) FICOCO_TRY(launch_rows(p, others, w.others, stream));
    params.blocks[1] = block_of(others, candidates, w.others, w.from, from_step);
    BlockOfA& way = params.blocks[2];  // weighted, and either way an other's row
    if (p.column) {
      way = block_of(others, sources, w.others, w.way, way_step);
      way.row_weight = p.others_weight;
    } else {
      way = block_of(sources, others, w.sources, w.way, 1);
      way.column_weight = p.others_weight;
      way.column_step = way_step;
      way.image_step = p.other_count * way_step;
    }
  }
  FICOCO_TRY(launch_blocks(p, params, stream));
  if (p.gamma < 1.f) {
    const dim3 grid(ceil_div(p.candidate_count, kWayColumns), ceil_div(p.r, kWaySources), p.batch);
    add_way_kernel<<<grid, kWayThreads, 0, stream>>>(p, w.way, way_step, w.from, from_step, w.direct);
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
