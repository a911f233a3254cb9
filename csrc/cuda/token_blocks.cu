// Blocks of A, the mean over heads of the attention of some tokens to others.
//
// A block of threads owns one tile of inner products, for all heads, and takes the softmax terms on the way. The tiles
// of all blocks of A are one grid.
//
// 2 B H d FLOPs an entry. Rows come from the second-level cache. For 64 x 64 tiles the cache feeds only a fifth of what
// tensor cores can do, so rows of half precision that can be read 16 bytes at a time use tiles of 128 x 128
// (probabilities, which also need registers for the sums over heads: 128 x 64). A tile of probabilities that causality
// and mask empty is not computed. Shared memory 112 KB (half), 71 KB (float).
#include "cuda/tile.cuh"
#include "cuda/token_blocks.cuh"

namespace ficoco {
namespace {

// One tile: which rows and columns of which block of A.
struct BlockTile {
  const TokenBlock& block;
  int b;
  int i0, j0, rows, columns;  // rows, columns: how many of them exist

  __device__ __forceinline__ BlockTile(const BlockParams& p, int tile_rows, int tile_columns)
      : block(find(p.blocks)), b(static_cast<int>(blockIdx.y)) {
    const int tile = static_cast<int>(blockIdx.x) - (&block == p.blocks ? 0 : p.blocks[0].tiles);
    i0 = tile / block.tile_columns * tile_rows;
    j0 = tile % block.tile_columns * tile_columns;
    rows = min(tile_rows, static_cast<int>(block.rows.count) - i0);
    columns = min(tile_columns, static_cast<int>(block.columns[0].list.count + block.columns[1].list.count) - j0);
  }

  __device__ __forceinline__ static const TokenBlock& find(const TokenBlock (&blocks)[kBlocks]) {
    return blocks[static_cast<int>(blockIdx.x) < blocks[0].tiles ? 0 : 1];
  }

  // The list that holds column j0 + j, and its index in that list.
  __device__ __forceinline__ const BlockColumns& list_of(int j, int* at) const {
    const int first = static_cast<int>(block.columns[0].list.count);
    *at = j0 + j < first ? j0 + j : j0 + j - first;
    return block.columns[j0 + j < first ? 0 : 1];
  }

  // The tokens of row i and column j; some valid token if there is no such row or column.
  __device__ __forceinline__ int row_token(const BlockParams& p, int i) const {
    const int64_t token = i < rows ? block.rows.tokens[b * block.rows.count + i0 + i] : p.offset;
    assert(token >= p.offset && token < p.keys && "ficoco::correlate: a token's query is not there");
    return static_cast<int>(token);
  }
  __device__ __forceinline__ int column_token(const BlockParams& p, int j) const {
    if (j >= columns) return 0;
    int at;
    const List& list = list_of(j, &at).list;
    const int64_t token = list.tokens[b * list.count + at];
    assert(token >= 0 && token < p.keys && "ficoco::correlate: an index is no token");
    return static_cast<int>(token);
  }

  __device__ __forceinline__ void write(int i, int j, float value) const {
    if (i >= rows || j >= columns) return;
    int at;
    const BlockColumns& to = list_of(j, &at);
    if (to.row_weight) value *= to.row_weight[b * block.rows.count + i0 + i];
    if (to.column_weight) value *= to.column_weight[b * to.list.count + at];
    to.out[b * to.image_step + (i0 + i) * to.row_step + at * to.column_step] = value;
  }
};

template <class T, bool kVector, bool kProbs>
__global__ void __launch_bounds__(kTileThreads, kProbs ? 2 : kTileBlocks<T>)
    attention_block_kernel(const __grid_constant__ BlockParams p, View<T> query, View<T> key) {
  extern __shared__ __align__(128) unsigned char storage[];
  auto& shared = *reinterpret_cast<TileShared<T, kDeepStages<T>>*>(storage);
  using Sums = TileSums<T>;
  __shared__ int rows[kTile], columns[kTile];
  const BlockTile tile(p, kTile, kTile);
  const int64_t b = tile.b, heads = query.heads;
  const int group = query.heads / key.heads;
  if (threadIdx.x < kTile) {
    rows[threadIdx.x] = tile.row_token(p, static_cast<int>(threadIdx.x));
    columns[threadIdx.x] = tile.column_token(p, static_cast<int>(threadIdx.x));
  }
  __syncthreads();
  const int chunks = chunks_of(p.width);
  float mean[kProbs ? Sums::kRows : 1][kProbs ? Sums::kColumns : 1] = {};
  Sums sums;
  const auto load = [&](int h, int chunk, TileStep<T>& to) {
    const int64_t c = static_cast<int64_t>(chunk) * kTile;
    const int key_head = h / group;
    to.a.template load<kVector>([&](int i) { return query.row(b, h, rows[i] - p.offset); }, tile.rows, c, p.width);
    to.b.template load<kVector>([&](int j) { return key.row(b, key_head, columns[j]); }, tile.columns, c, p.width);
    if constexpr (kProbs) {
      const RowSoftmax& softmax = tile.block.softmax;
      const auto statistic = [&](int i) {
        return softmax.at(b * heads + h, tile.block.rows.count, p.keys, tile.i0 + i, rows[i]);
      };
      to.load_softmax(softmax.top, softmax.inverse, statistic, tile.rows);
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
#pragma unroll
  for (int i = 0; i < Sums::kRows; ++i) {
#pragma unroll
    for (int j = 0; j < Sums::kColumns; ++j) {
      if constexpr (kProbs) {
        tile.write(Sums::row(i), Sums::column(j), mean[i][j] * factor);
      } else {
        tile.write(Sums::row(i), Sums::column(j), sums.at(i, j) * factor);
      }
    }
  }
}

constexpr int kWideRows = 128;
template <bool kProbs>
constexpr int kWideColumns = kProbs ? 64 : 128;

template <class T, bool kProbs>
struct alignas(128) WideStep {
  static constexpr int kStride = kTile + kPer<T>;  // 16 bytes of padding a row keep the banks apart
  T a[kWideRows * kStride], b[kWideColumns<kProbs> * kStride];
  float top[kProbs ? kWideRows : 1], inverse[kProbs ? kWideRows : 1];
};

// A warp has 64 columns and 16 rows of probabilities or 32 of logits.
template <class T, bool kProbs, int kWideStages>
__global__ void __launch_bounds__(kTileThreads, 2)
    wide_block_kernel(const __grid_constant__ BlockParams p, View<T> query, View<T> key) {
  extern __shared__ __align__(128) unsigned char storage[];
  using Step = WideStep<T, kProbs>;
  auto* shared = reinterpret_cast<Step*>(storage);
  constexpr int kColumns = kWideColumns<kProbs>, kStride = Step::kStride, kPacks = kTile / kPer<T>;
  constexpr int kAtOnce = kTileThreads / kPacks;
  constexpr int kHalves = kProbs ? 2 : 4, kEights = 8;  // eight rows and eight columns each, of a warp
  __shared__ int rows[kWideRows], columns[kColumns];
  const BlockTile tile(p, kWideRows, kColumns);
  const int b = tile.b;
  const int heads = query.heads, group = query.heads / key.heads, lane = threadIdx.x % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, row_warps = kWideRows / (8 * kHalves);
  const int row0 = warp % row_warps * 8 * kHalves, column0 = warp / row_warps * 64;
  const int first = static_cast<int>(threadIdx.x);
  if (first < kWideRows) rows[first] = tile.row_token(p, first);
  if (first < kColumns) columns[first] = tile.column_token(p, first);
  __syncthreads();
  const auto row_at = [&](int i) { return row0 + 8 * i + lane / 4; };
  const auto column_at = [&](int j, int e) { return column0 + 8 * j + lane % 4 * 2 + e; };
  const int chunks = chunks_of(p.width), width = static_cast<int>(p.width), offset = static_cast<int>(p.offset);
  int steps = heads * chunks;
  uint32_t seen = 0;  // a bit for each of the lane's pairs that counts
  if constexpr (kProbs) {
    static_assert(kHalves * kEights * 2 == 32);
#pragma unroll
    for (int j = 0; j < kEights; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int column = column_at(j, e), token = columns[column];
        const bool is_key = column < tile.columns && (!p.key_mask || p.key_mask[b * p.keys + token]);
#pragma unroll
        for (int i = 0; i < kHalves; ++i) {
          const bool counts = is_key && (!p.causal || token <= rows[row_at(i)]);
          seen |= static_cast<uint32_t>(counts) << ((i * kEights + j) * 2 + e);
        }
      }
    }
    if (!__syncthreads_or(seen != 0)) steps = 0;  // nothing is loaded either
  }
  const int statistic = tile.i0 + min(first, tile.rows - 1);  // any valid one for missing rows
  const int statistic_token = rows[min(first, tile.rows - 1)];
  int next_h = steps == 0 ? heads : 0, next_c = 0;  // loaded next
  const auto load = [&](Step& to) {
    if (next_h < heads) {
      const int h = next_h, c = next_c, at = first % kPacks * kPer<T>;
      next_c += kTile;
      if (next_c >= width) {
        next_c = 0;
        ++next_h;
      }
      const T *queries = query.row(b, h, 0) + c, *keys = key.row(b, h / group, 0) + c;
      const bool inside = c + at < width;
#pragma unroll 2
      for (int i = 0; i < kWideRows / kAtOnce; ++i) {
        const int r = first / kPacks + i * kAtOnce;
        const T* from = queries + (inside ? (rows[r] - offset) * query.stride_n + at : 0);
        copy_async<16>(to.a + r * kStride + at, from, inside);
      }
#pragma unroll
      for (int i = 0; i < kColumns / kAtOnce; ++i) {
        const int r = first / kPacks + i * kAtOnce;
        const T* from = keys + (inside ? columns[r] * key.stride_n + at : 0);
        copy_async<16>(to.b + r * kStride + at, from, inside);
      }
      if (kProbs && c + kTile >= width && first < kWideRows) {
        const RowSoftmax& softmax = tile.block.softmax;
        const int64_t head = static_cast<int64_t>(b) * heads + h;
        const int64_t at_row = softmax.at(head, tile.block.rows.count, p.keys, statistic, statistic_token);
        copy_async<4>(to.top + first, softmax.top + at_row, true);
        copy_async<4>(to.inverse + first, softmax.inverse + at_row, true);
      }
    }
    commit_copies();
  };
  const float scale_log2 = p.scale * kLog2e;
  float sums[kHalves / 2][kEights][4] = {}, mean[kProbs ? kHalves : 1][kProbs ? kEights : 1][2] = {};
#pragma unroll
  for (int step = 0; step < kWideStages - 1; ++step) load(shared[step]);
  int stage = 0;
  [[maybe_unused]] int chunk = 0;
  for (; steps > 0; --steps) {
    wait_for_copies<kWideStages - 2>();
    __syncthreads();  // all copies have arrived, and no thread still reads what the next ones overwrite
    load(shared[stage == 0 ? kWideStages - 1 : stage - 1]);
    const Step& from = shared[stage];
    stage = stage == kWideStages - 1 ? 0 : stage + 1;
    const int of_lane = lane % 16 * kStride + lane / 16 * 8;
    const T *of_a = from.a + row0 * kStride + of_lane, *of_b = from.b + column0 * kStride + of_lane;
#pragma unroll
    for (int k = 0; k < kTile; k += 16) {
      uint32_t fa[kHalves / 2][4];
#pragma unroll
      for (int m = 0; m < kHalves / 2; ++m) load_matrices(fa[m], of_a + 16 * m * kStride + k);
#pragma unroll
      for (int j = 0; j < kEights; j += 2) {  // 16 columns, in the order of fa: 0, 2 are those of the first eight
        uint32_t fb[4];
        load_matrices(fb, of_b + 8 * j * kStride + k);
#pragma unroll
        for (int m = 0; m < kHalves / 2; ++m) {
          multiply_add<T>(sums[m][j], fa[m], fb[0], fb[2]);
          multiply_add<T>(sums[m][j + 1], fa[m], fb[1], fb[3]);
        }
      }
    }
    if constexpr (kProbs) {
      if (++chunk < chunks) continue;
      chunk = 0;
#pragma unroll
      for (int i = 0; i < kHalves; ++i) {
        const float top = from.top[row_at(i)], inverse = from.inverse[row_at(i)];
#pragma unroll
        for (int j = 0; j < kEights; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& sum = sums[i / 2][j][i % 2 * 2 + e];
            const float term = softmax_term(sum, top, scale_log2);
            const bool counts = seen >> ((i * kEights + j) * 2 + e) & 1u;
            mean[i][j][e] = counts ? fmaf(term, inverse, mean[i][j][e]) : mean[i][j][e];
            sum = 0.f;
          }
        }
      }
    }
  }
  wait_for_copies<0>();
  const float factor = (kProbs ? 1.f : p.scale) / static_cast<float>(heads);
#pragma unroll
  for (int i = 0; i < kHalves; ++i) {
#pragma unroll
    for (int j = 0; j < kEights; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if constexpr (kProbs) {
          tile.write(row_at(i), column_at(j, e), mean[i][j][e] * factor);
        } else {
          tile.write(row_at(i), column_at(j, e), sums[i / 2][j][i % 2 * 2 + e] * factor);
        }
      }
    }
  }
}

// Sets the tiles of every block and returns how many there are.
int64_t count_tiles(BlockParams& p, int64_t rows, int64_t columns) {
  int64_t all = 0;
  for (TokenBlock& block : p.blocks) {
    const int64_t across = ceil_div(block.columns[0].list.count + block.columns[1].list.count, columns);
    const int64_t tiles = across * ceil_div(block.rows.count, rows);
    block.tile_columns = static_cast<int>(across);
    block.tiles = static_cast<int>(tiles);
    all += tiles;
  }
  return all;
}

template <class T, bool kProbs>
cudaError_t launch_wide(BlockParams& p, cudaStream_t stream) {
  const int64_t tiles = count_tiles(p, kWideRows, kWideColumns<kProbs>);
  if (tiles == 0) return cudaSuccess;
  const dim3 grid(tiles, p.batch);
  constexpr size_t kStep = sizeof(WideStep<T, kProbs>);
  const auto go = [&](auto kernel, size_t shared) {
    FICOCO_TRY(allow_shared(kernel, shared));
    kernel<<<grid, kTileThreads, shared, stream>>>(p, view<T>(p.query), view<T>(p.key));
    return launched();
  };
  if constexpr (!kProbs) {  // GPUs other than those for data centers have up to 99 KB of shared memory a block
    bool has = true;
    FICOCO_TRY(has_shared(3 * kStep + kStaticShared, has));
    if (!has) return go(wide_block_kernel<T, kProbs, 2>, 2 * kStep);
  }
  return go(wide_block_kernel<T, kProbs, 3>, 3 * kStep);
}

}  // namespace

cudaError_t launch_token_blocks(BlockParams p, cudaStream_t stream) {
  const bool whole = vectorised(p.query, p.width) && vectorised(p.key, p.width);
  if (whole && p.query.dtype == Dtype::kHalf) {
    return p.probs ? launch_wide<__half, true>(p, stream) : launch_wide<__half, false>(p, stream);
  }
  if (whole && p.query.dtype == Dtype::kBFloat16) {
    return p.probs ? launch_wide<__nv_bfloat16, true>(p, stream) : launch_wide<__nv_bfloat16, false>(p, stream);
  }
  const int64_t tiles = count_tiles(p, kTile, kTile);
  if (tiles == 0) return cudaSuccess;
  return with_type(p.query.dtype, whole, [&](auto type, auto vector) {
    using T = decltype(type);
    constexpr bool kVector = decltype(vector)::value;
    const auto kernel = p.probs ? attention_block_kernel<T, kVector, true> : attention_block_kernel<T, kVector, false>;
    constexpr size_t kShared = sizeof(TileShared<T, kDeepStages<T>>);
    FICOCO_TRY(allow_shared(kernel, kShared));
    kernel<<<dim3(tiles, p.batch), kTileThreads, kShared, stream>>>(p, view<T>(p.query), view<T>(p.key));
    return launched();
  });
}

}  // namespace ficoco
