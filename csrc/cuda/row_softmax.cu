// Softmax statistics of query rows.
//
// A block owns 64 rows of one head and walks over the keys, 64 at a time, up to the last key that any of its rows may
// attend to. Every thread carries its own maximum and sums for the rows and columns that it holds in registers. Those
// of a row are united after every 1024 keys, and the results of these parts are united in their order. Where there are
// few rows, a block takes one such part and a second kernel unites them: the same sums, bit for bit.
//
// Half precision, d <= 64, no mask and many rows: a block owns 128 rows. Their q stays in registers in the layout of
// the tensor cores. A warp then multiplies each key that it reads with 32 rows instead of 16, and reads nothing else:
// 16 KB of shared memory for 64 x 64 products instead of 48, which takes less time than the exponentials. The same sums
// again.
//
// The mask of 64 keys is read at once, one turn ahead. Rows of a tile that may attend to all its keys need no test.
//
// 2 B H R N d FLOPs. k is read once for every 64 rows; q once, or as often as k if d > 128: bound by arithmetic. Shared
// memory: 38 KB (half), 71 KB (float).
#include "cuda/row_softmax.cuh"

#include <cfloat>
#include <type_traits>

#include "cuda/tile.cuh"

namespace ficoco {
namespace {

// The softmax of part of a row: `top` is the largest of |scale| log2(e) s, sum and first add
// 2^(term - top). Products change their sign if the scale is negative. `first` is the class token's term, kept apart.
struct Part {
  float top, sum, first;

  __device__ __forceinline__ void raise(float highest) {
    const float scaling = top == -INFINITY ? 0.f : exp2_fast(top - highest);
    top = highest;
    sum *= scaling;
    first *= scaling;
  }
  __device__ __forceinline__ void unite(Part other) {
    const float highest = fmaxf(top, other.top);
    raise(highest);
    other.raise(highest);
    sum += other.sum;
    first += other.first;
  }
};

// The final statistics of a row.
__device__ __forceinline__ void write_row(const RowSoftmaxParams& p, int64_t at, const Part& whole) {
  const float total = whole.sum + whole.first;
  p.out.top[at] = whole.top;
  p.out.inverse[at] =
      (p.causal || p.key_mask) && total == 0.f ? 0.f : 1.f / total;  // a query that may attend to no key
  if (p.out.patch_sum) p.out.patch_sum[at] = whole.sum / total;
}

// Sums of a tile of 128 x 64 whose rows stay in registers: warp w has rows 32 (w % 4) and columns 32 (w / 4) and their
// followers, columns as TileSums has them.
template <class T>
class WideSums {
 public:
  static constexpr int kRows = 4, kColumns = TileSums<T>::kColumns, kAcross = 4, kRowWarps = 2;

  __device__ WideSums() { clear(); }
  __device__ static int row_warp() { return TileSums<T>::row_warp(); }
  // Whether this warp owns none of the first `rows` rows, or none of the first `columns` columns.
  __device__ static bool idle(int rows, int columns) {
    return static_cast<int>(threadIdx.x / kWarp % 4) * 32 >= rows || row_warp() * 32 >= columns;
  }
  __device__ static int row(int i) { return threadIdx.x / kWarp % 4 * 32 + threadIdx.x % kWarp / 4 + 8 * i; }
  __device__ static int column(int j) { return TileSums<T>::column(j); }
  __device__ float at(int i, int j) const { return sums_[i / 2][j / 2][2 * (i % 2) + j % 2]; }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int e = 0; e < 32; ++e) sums_[e / 16][e / 4 % 4][e % 4] = 0.f;
  }
  // Rows 0 to 63 and 64 to 127, of up to 64 channels.
  __device__ __forceinline__ void keep(const TileRows<T>& low, const TileRows<T>& high) {
    const int warp = threadIdx.x / kWarp % 4, lane = threadIdx.x % kWarp;
    const T* of = (warp < 2 ? low : high).x + (warp % 2 * 32 + lane % 16) * TileRows<T>::kStride + lane / 16 * 8;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int k = 0; k < 4; ++k) load_matrices(kept_[m][k], of + 16 * m * TileRows<T>::kStride + 16 * k);
    }
  }
  // sums[i][j] += <kept row i, b row j>.
  __device__ __forceinline__ void add(const TileRows<T>& b) {
    constexpr int kStride = TileRows<T>::kStride;
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const T* of_b = b.x + (warp / 4 * 32 + lane % 8 + lane / 16 * 8) * kStride + lane / 8 % 2 * 8;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {  // 16 columns
        uint32_t fb[4];
        load_matrices(fb, of_b + 16 * half * kStride + 16 * k);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          multiply_add<T>(sums_[m][2 * half], kept_[m][k], fb[0], fb[1]);
          multiply_add<T>(sums_[m][2 * half + 1], kept_[m][k], fb[2], fb[3]);
        }
      }
    }
  }

 private:
  uint32_t kept_[2][4][4];
  float sums_[2][4][4];
};

constexpr int kPartTurns = 16;       // turns of 64 keys in a part
constexpr int64_t kFewBlocks = 256;  // with fewer, a row's parts are shared among blocks
constexpr int kPartsOfRow = 2;       // at most, of each part: warps that share a row
constexpr int kUniters = 128;
constexpr int64_t kManyBlocks = 512;  // of 128 rows: enough to keep every multiprocessor busy

int64_t parts_of(int64_t keys) { return ceil_div(keys, kTile * kPartTurns); }

// The largest (or smallest) of the tokens, in all lanes.
template <int kCount>
__device__ __forceinline__ int farthest(const int (&tokens)[kCount], bool largest) {
  const int lane = threadIdx.x % kWarp;
  int token = tokens[lane];
#pragma unroll
  for (int i = kWarp; i < kCount; i += kWarp) {
    token = largest ? max(token, tokens[lane + i]) : min(token, tokens[lane + i]);
  }
  return largest ? __reduce_max_sync(kAllLanes, token) : __reduce_min_sync(kAllLanes, token);
}

// `splits` blocks have a part each of the same rows' keys, or one has all.
template <class T, bool kVector, bool kMasked, bool kWide>
__global__ void __launch_bounds__(kTileThreads, kWide ? 2 : kTileBlocks<T>)
    row_softmax_kernel(RowSoftmaxParams p, View<T> query, View<T> key, int splits) {
  extern __shared__ __align__(128) unsigned char storage[];
  auto& shared = *reinterpret_cast<TileShared<T, kStages>*>(storage);
  using Sums = std::conditional_t<kWide, WideSums<T>, TileSums<T>>;
  constexpr int kBlockRows = kWide ? 2 * kTile : kTile;
  static_assert(kTile == 2 * kWarp && kStages == 2 && Sums::kRowWarps <= kPartsOfRow);
  __shared__ Part parts[Sums::kRowWarps][kBlockRows];
  __shared__ int tokens[kBlockRows];
  __shared__ uint32_t keys_seen[3][2];  // bits of the last turn's 64 keys, this one's and the next one's
  const int split = static_cast<int>(blockIdx.x) % splits;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) / splits * kBlockRows, h = blockIdx.y, b = blockIdx.z;
  const int rows = static_cast<int>(min(static_cast<int64_t>(kBlockRows), p.count - begin));
  if (threadIdx.x < kBlockRows) {
    const int i = threadIdx.x;
    const int64_t row = begin + min(i, rows - 1), token = p.rows ? p.rows[b * p.count + row] : row;
    assert(token >= p.offset && token < p.tokens && "ficoco: the softmax of a token whose query is not there");
    tokens[i] = static_cast<int>(token);
#pragma unroll
    for (int w = 0; w < Sums::kRowWarps; ++w) parts[w][i] = {-INFINITY, 0.f, 0.f};
  }
  __syncthreads();
  const int nearest = kMasked && p.causal ? farthest(tokens, false) : INT_MAX;
  const int keys = kMasked && p.causal ? farthest(tokens, true) + 1 : static_cast<int>(p.tokens);
  const int all_turns = (keys + kTile - 1) / kTile, first_turn = split * kPartTurns;
  const int turns = splits > 1 ? min(kPartTurns, all_turns - first_turn) : all_turns, chunks = chunks_of(p.width);
  const int row_turns = turns_to_load<kStages>(chunks), offset = static_cast<int>(p.offset);
  const T* query_rows = query.row(b, h, 0);
  const T* key_rows = key.row(b, h / (query.heads / key.heads), 0);
  const bool* mask = kMasked && p.key_mask ? p.key_mask + b * p.tokens : nullptr;
  const auto columns_of = [&](int turn) { return min(kTile, keys - (first_turn + turn) * kTile); };
  const auto is_key = [&](int turn) {  // key threadIdx.x of the turn
    const int j = static_cast<int>(threadIdx.x);
    return j < columns_of(turn) && mask[(first_turn + turn) * kTile + j];
  };
  bool next_seen = kMasked && mask && threadIdx.x < kTile && is_key(0);
  const auto query_row = [&](int i) { return query_rows + (tokens[i] - offset) * query.stride_n; };
  const auto load = [&](int turn, int chunk, TileStep<T>& to) {
    const int64_t c = static_cast<int64_t>(chunk) * kTile;
    const int j0 = (first_turn + turn) * kTile;
    if (!kWide && turn < row_turns) to.a.template load<kVector>(query_row, rows, c, p.width);
    to.b.template load<kVector>([&](int j) { return key_rows + (j0 + j) * key.stride_n; }, columns_of(turn), c,
                                p.width);
    if (kMasked && mask && chunk == 0 && threadIdx.x < kTile) {
      const uint32_t seen = __ballot_sync(kAllLanes, next_seen);
      if (threadIdx.x % kWarp == 0) keys_seen[turn % 3][threadIdx.x / kWarp] = seen;
      next_seen = turn + 1 < turns && is_key(turn + 1);
    }
  };
  // A negative scale turns the order around: the largest term belongs to the smallest product.
  const float sign = p.scale < 0.f ? -1.f : 1.f;
  const float scale_log2 =
      p.scale == 0.f ? FLT_MIN : sign * p.scale * kLog2e;  // minus infinity must stay minus infinity
  Part part[Sums::kRows];
#pragma unroll
  for (int i = 0; i < Sums::kRows; ++i) part[i] = {-INFINITY, 0.f, 0.f};
  Sums sums;
  if constexpr (kWide) {  // missing rows are zeros
    shared.steps[0].a.template load<kVector>(query_row, rows, 0, p.width);
    shared.steps[1].a.template load<kVector>([&](int i) { return query_row(kTile + i); }, rows - kTile, 0, p.width);
    commit_copies();
    wait_for_copies<0>();
    __syncthreads();
    sums.keep(shared.steps[0].a, shared.steps[1].a);
  }
  walk(shared, turns, chunks, load, [&](int turn, int chunk, const TileStep<T>& from) {
    const int j0 = (first_turn + turn) * kTile, columns = columns_of(turn);
    bool idle = false;  // the warp has no rows or columns to sum
    if constexpr (kWide) idle = Sums::idle(rows, columns);
    if constexpr (kWide) {
      if (!idle) sums.add(from.b);
    } else {
      sums.add(from.a, from.b);
    }
    if (chunk != chunks - 1) return;
    const uint32_t low = kMasked && mask ? keys_seen[turn % 3][0] : kAllLanes;
    const uint32_t high = kMasked && mask ? keys_seen[turn % 3][1] : kAllLanes;
    const bool all_seen = columns == kTile && (!kMasked || ((low & high) == kAllLanes && j0 + kTile - 1 <= nearest));
#pragma unroll
    for (int i = 0; i < Sums::kRows; ++i) {
      if (idle) break;
      if (p.out.products && begin + Sums::row(i) == 0) {
        float* products = p.out.products + (b * query.heads + h) * p.tokens + j0;
#pragma unroll
        for (int j = 0; j < Sums::kColumns; ++j) {
          if (Sums::column(j) < columns) products[Sums::column(j)] = sums.at(i, j);
        }
      }
      float value[Sums::kColumns];
#pragma unroll
      for (int j = 0; j < Sums::kColumns; ++j) value[j] = sums.at(i, j);
      if (!all_seen || sign < 0.f) {
        const int last = kMasked && p.causal ? tokens[Sums::row(i)] - j0 : kTile;  // column that the row attends to
#pragma unroll
        for (int j = 0; j < Sums::kColumns; ++j) {
          const int column = Sums::column(j);
          const bool seen = column < columns &&
                            (!kMasked || (column <= last && ((column < kWarp ? low : high) >> column % kWarp & 1u)));
          value[j] = seen ? sign * value[j] : -INFINITY;
        }
      }
      float highest = value[0];
#pragma unroll
      for (int j = 1; j < Sums::kColumns; ++j) highest = fmaxf(highest, value[j]);
      highest = fmaxf(part[i].top, highest * scale_log2);
      part[i].raise(highest);
      const float base = highest == -INFINITY ? 0.f : highest;  // no key so far, and -infinity - -infinity is NaN
#pragma unroll
      for (int j = 0; j < Sums::kColumns; ++j) {
        const float term = softmax_term(value[j], base, scale_log2);
        if (j == 0 && j0 + Sums::column(0) < p.first) {  // the class token's column is the first of some thread
          part[i].first += term;
        } else {
          part[i].sum += term;
        }
      }
    }
    sums.clear();
    if (turn != turns - 1 && turn % kPartTurns != kPartTurns - 1) return;
#pragma unroll
    for (int i = 0; i < Sums::kRows; ++i) {
#pragma unroll
      for (int offset = 1; offset < Sums::kAcross; offset *= 2) {
        const Part other{__shfl_xor_sync(kAllLanes, part[i].top, offset),
                         __shfl_xor_sync(kAllLanes, part[i].sum, offset),
                         __shfl_xor_sync(kAllLanes, part[i].first, offset)};
        part[i].unite(other);
      }
      if (threadIdx.x % Sums::kAcross == 0) parts[Sums::row_warp()][Sums::row(i)].unite(part[i]);
      part[i] = {-INFINITY, 0.f, 0.f};
    }
  });
  __syncthreads();
  if (static_cast<int>(threadIdx.x) >= rows) return;
  const int64_t at = (b * query.heads + h) * p.count + begin + threadIdx.x;
  if (splits > 1) {
    Part* out = reinterpret_cast<Part*>(p.out.parts) + (at * splits + split) * Sums::kRowWarps;
#pragma unroll
    for (int w = 0; w < Sums::kRowWarps; ++w) out[w] = parts[w][threadIdx.x];
    return;
  }
  Part whole = parts[0][threadIdx.x];
#pragma unroll
  for (int w = 1; w < Sums::kRowWarps; ++w) whole.unite(parts[w][threadIdx.x]);
  write_row(p, at, whole);
}

// One thread a row of a head. Unites its parts, made by different blocks, in the order in which one block would have
// made them. With lists the first blocks write those, an image each.
template <class T>
__global__ void __launch_bounds__(kUniters)
    unite_kernel(RowSoftmaxParams p, int64_t rows, int splits, SequenceLists lists) {
  constexpr int kWarps = TileSums<T>::kRowWarps;
  const int64_t writers = lists.others ? p.batch : 0;
  if (blockIdx.x < writers) {
    write_lists(lists, blockIdx.x);
    return;
  }
  const int64_t at = (blockIdx.x - writers) * kUniters + threadIdx.x;
  if (at >= rows) return;
  const Part* parts = reinterpret_cast<const Part*>(p.out.parts) + at * splits * kWarps;
  Part whole[kWarps];
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    whole[w] = {-INFINITY, 0.f, 0.f};
    for (int split = 0; split < splits; ++split) whole[w].unite(parts[split * kWarps + w]);
    if (w > 0) whole[0].unite(whole[w]);
  }
  write_row(p, at, whole[0]);
}

template <class T, bool kVector, bool kMasked, bool kWide>
cudaError_t launch(const RowSoftmaxParams& p, cudaStream_t stream, const SequenceLists& lists) {
  const auto kernel = row_softmax_kernel<T, kVector, kMasked, kWide>;
  const int splits = p.out.parts ? static_cast<int>(parts_of(p.tokens)) : 1;
  const dim3 grid(ceil_div(p.count, kWide ? 2 * kTile : kTile) * splits, p.query.heads, p.batch);
  constexpr size_t kShared = sizeof(TileShared<T, kStages>);
  FICOCO_TRY(allow_shared(kernel, kShared));
  kernel<<<grid, kTileThreads, kShared, stream>>>(p, view<T>(p.query), view<T>(p.key), splits);
  FICOCO_TRY(launched());
  if (splits == 1 && !lists.others) return cudaSuccess;
  const int64_t rows = splits == 1 ? 0 : p.batch * p.query.heads * p.count;
  const int64_t blocks = ceil_div(rows, kUniters) + (lists.others ? p.batch : 0);
  unite_kernel<T><<<static_cast<unsigned>(blocks), kUniters, 0, stream>>>(p, rows, splits, lists);
  return launched();
}

}  // namespace

RowSoftmax take_row_softmax(Pieces& pieces, int64_t batch, int64_t heads, int64_t count, int64_t keys) {
  RowSoftmax out{};
  out.top = pieces.take<float>(batch, heads, count);
  out.inverse = pieces.take<float>(batch, heads, count);
  const int64_t parts = parts_of(keys);
  if (parts > 1 && ceil_div(count, kTile) * heads * batch < kFewBlocks) {
    out.parts = pieces.take<float>(batch, heads, count, parts, kPartsOfRow, sizeof(Part) / sizeof(float));
  }
  return out;
}

cudaError_t launch_row_softmax(const RowSoftmaxParams& p, cudaStream_t stream, const SequenceLists& lists) {
  if (p.batch * p.count == 0) return cudaSuccess;
  const bool whole = vectorised(p.query, p.width) && vectorised(p.key, p.width);
  const bool wide = p.width <= kTile && ceil_div(p.count, 2 * kTile) * p.query.heads * p.batch >= kManyBlocks;
  return with_type(p.query.dtype, whole, [&](auto type, auto vector) {
    using T = decltype(type);
    constexpr bool kVector = decltype(vector)::value;
    if (p.causal || p.key_mask) return launch<T, kVector, true, false>(p, stream, lists);
    if constexpr (kVector && sizeof(T) == 2) {
      if (wide) return launch<T, kVector, false, true>(p, stream, lists);
    }
    return launch<T, kVector, false, false>(p, stream, lists);
  });
}

}  // namespace ficoco
