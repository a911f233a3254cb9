// Softmax statistics of query rows. A block owns 64 rows of one head and walks over all keys, 64 at a time. Every
// thread goes on with a maximum and sums of its own for the rows and columns that it holds in registers; those of a row
// are united at the end.
//
// Shared memory: 38 KB (half), 71 KB (float). 2 B H R N d FLOPs; k once for every 64 rows, q once, or as often as k if
// d > 128: bound by arithmetic.
#include "cuda/row_softmax.cuh"

#include <cfloat>

#include "cuda/tile.cuh"

namespace ficoco {
namespace {

// The softmax of part of a row, of products that are turned around if the scale is negative: sum and first are of
// exp(|scale| * (s - top)); `first` is the class token's term, kept apart.
struct Part {
  float top, sum, first;

  __device__ __forceinline__ void raise(float highest, float scale_log2) {
    const float scaling = top == -INFINITY ? 0.f : softmax_term(top, highest, scale_log2);
    top = highest;
    sum *= scaling;
    first *= scaling;
  }
  __device__ __forceinline__ void unite(Part other, float scale_log2) {
    const float highest = fmaxf(top, other.top);
    raise(highest, scale_log2);
    other.raise(highest, scale_log2);
    sum += other.sum;
    first += other.first;
  }
};

template <class T, bool kVector, bool kMasked>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks<T>)
    row_softmax_kernel(RowSoftmaxParams p, View<T> query, View<T> key) {
  extern __shared__ __align__(128) unsigned char storage[];
  auto& shared = *reinterpret_cast<TileShared<T, kStages>*>(storage);
  using Sums = TileSums<T>;
  __shared__ Part parts[Sums::kRowWarps][kTile];
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kTile, h = blockIdx.y, b = blockIdx.z;
  const int rows = static_cast<int>(min(static_cast<int64_t>(kTile), p.count - begin));
  const int64_t key_head = h / (query.heads / key.heads);
  __shared__ int tokens[kTile];
  if (threadIdx.x < kTile) {
    const int i = threadIdx.x;
    const int64_t token = i >= rows ? p.offset : p.rows ? p.rows[b * p.count + begin + i] : begin + i;
    assert(token >= p.offset && token < p.tokens && "ficoco: the softmax of a token whose query is not there");
    tokens[i] = static_cast<int>(token);
  }
  __syncthreads();
  const int turns = static_cast<int>(ceil_div(p.tokens, kTile)), chunks = chunks_of(p.width);
  const int row_turns = turns_to_load<kStages>(chunks);
  const auto columns_of = [&](int turn) { return min(kTile, static_cast<int>(p.tokens) - turn * kTile); };
  const auto load = [&](int turn, int chunk, TileStep<T>& to) {
    const int64_t j0 = static_cast<int64_t>(turn) * kTile, c = static_cast<int64_t>(chunk) * kTile;
    if (turn < row_turns) {
      to.a.template load<kVector>([&](int i) { return query.row(b, h, tokens[i] - p.offset); }, rows, c, p.width);
    }
    to.b.template load<kVector>([&](int j) { return key.row(b, key_head, j0 + j); }, columns_of(turn), c, p.width);
  };
  // A negative scale turns the order around: the largest term belongs to the smallest product.
  const float sign = p.scale < 0.f ? -1.f : 1.f;
  const float scale_log2 = p.scale == 0.f ? FLT_MIN : sign * p.scale * kLog2e;  // minus infinity must stay that
  Part part[Sums::kRows];
#pragma unroll
  for (int i = 0; i < Sums::kRows; ++i) part[i] = {-INFINITY, 0.f, 0.f};
  Sums sums;
  walk(shared, turns, chunks, load, [&](int turn, int chunk, const TileStep<T>& from) {
    sums.add(from.a, from.b);
    if (chunk != chunks - 1) return;
    const int j0 = turn * kTile, columns = columns_of(turn);
#pragma unroll
    for (int i = 0; i < Sums::kRows; ++i) {
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
      if (kMasked || columns < kTile || sign < 0.f) {
#pragma unroll
        for (int j = 0; j < Sums::kColumns; ++j) {
          const bool seen =
              Sums::column(j) < columns &&
              (!kMasked || attends(p.causal, p.key_mask, p.tokens, b, tokens[Sums::row(i)], j0 + Sums::column(j)));
          value[j] = seen ? sign * value[j] : -INFINITY;
        }
      }
      float highest = part[i].top;
#pragma unroll
      for (int j = 0; j < Sums::kColumns; ++j) highest = fmaxf(highest, value[j]);
      part[i].raise(highest, scale_log2);
      const float base = highest == -INFINITY ? 0.f : highest;  // so far nobody, and -infinity - -infinity is NaN
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
  });
#pragma unroll
  for (int i = 0; i < Sums::kRows; ++i) {
#pragma unroll
    for (int offset = 1; offset < Sums::kAcross; offset *= 2) {
      const Part other{__shfl_xor_sync(kAllLanes, part[i].top, offset), __shfl_xor_sync(kAllLanes, part[i].sum, offset),
                       __shfl_xor_sync(kAllLanes, part[i].first, offset)};
      part[i].unite(other, scale_log2);
    }
    if (threadIdx.x % Sums::kAcross == 0) parts[Sums::row_warp()][Sums::row(i)] = part[i];
  }
  __syncthreads();
  if (static_cast<int>(threadIdx.x) >= rows) return;
  Part whole = parts[0][threadIdx.x];
#pragma unroll
  for (int w = 1; w < Sums::kRowWarps; ++w) whole.unite(parts[w][threadIdx.x], scale_log2);
  const int64_t at = (b * query.heads + h) * p.count + begin + threadIdx.x;
  const float total = whole.sum + whole.first;
  p.out.top[at] = sign * whole.top;
  p.out.inverse[at] = kMasked && total == 0.f ? 0.f : 1.f / total;  // a query that may attend to nobody
  if (p.out.patch_sum) p.out.patch_sum[at] = whole.sum / total;
}

}  // namespace

cudaError_t launch_row_softmax(const RowSoftmaxParams& p, cudaStream_t stream) {
  if (p.batch * p.count == 0) return cudaSuccess;
  const bool whole = vectorised(p.query, p.width) && vectorised(p.key, p.width);
  return with_type(p.query.dtype, whole, [&](auto type, auto vector) {
    using T = decltype(type);
    constexpr bool kVector = decltype(vector)::value;
    const auto kernel =
        p.causal || p.key_mask ? row_softmax_kernel<T, kVector, true> : row_softmax_kernel<T, kVector, false>;
    const dim3 grid(ceil_div(p.count, kTile), p.query.heads, p.batch);
    constexpr size_t kShared = sizeof(TileShared<T, kStages>);
    FICOCO_TRY(allow_shared(kernel, kShared));
    kernel<<<grid, kTileThreads, kShared, stream>>>(p, view<T>(p.query), view<T>(p.key));
    return launched();
  });
}

}  // namespace ficoco
