// Softmax statistics of query rows. A block owns 64 rows of one head and walks over all keys, 64 at a time: inner
// products to shared memory, then four threads a row go on with the running maximum and sums.
//
// Shared memory: 35 KB (half), 52 KB (float). 2 B H R N d FLOPs; q once and k once for every 64 rows: bound by
// arithmetic.
#include "cuda/row_softmax.cuh"
#include "cuda/tile.cuh"

namespace ficoco {
namespace {

template <class T, bool kVector, bool kMasked>
__global__ void __launch_bounds__(kTileThreads, 2) row_softmax_kernel(RowSoftmaxParams p, View<T> query, View<T> key) {
  extern __shared__ __align__(128) unsigned char storage[];
  TileShared<T>& shared = *reinterpret_cast<TileShared<T>*>(storage);
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kTile, h = blockIdx.y, b = blockIdx.z;
  const int rows = static_cast<int>(min(static_cast<int64_t>(kTile), p.count - begin));
  const int64_t key_head = h / (query.heads / key.heads);
  const auto query_row = [&](int i) {
    return query.row(b, h, (p.rows ? p.rows[b * p.count + begin + i] : begin + i) - p.offset);
  };
  const int row = threadIdx.x / 4, part = threadIdx.x % 4;
  const int64_t token = kMasked && row < rows ? (p.rows ? p.rows[b * p.count + begin + row] : begin + row) : 0;
  const auto seen = [&](int64_t j) { return !kMasked || attends(p.causal, p.key_mask, p.tokens, b, token, j); };
  // A negative scale turns the order around: the largest term belongs to the smallest product.
  const float scale_log2 = p.scale * kLog2e, sign = p.scale < 0.f ? -1.f : 1.f;
  float top = -INFINITY, sum = 0.f, first = 0.f;  // of sign * s; `first` is the class token's term, kept apart
  for (int64_t j0 = 0; j0 < p.tokens; j0 += kTile) {
    const int columns = static_cast<int>(min(static_cast<int64_t>(kTile), p.tokens - j0));
    TileSums<T> sums;
    add_rows<kVector>(
        sums, shared, query_row, rows, [&](int j) { return key.row(b, key_head, j0 + j); }, columns, p.width);
    sums.store(shared.scores);
    __syncthreads();
    const float* scores = shared.scores + row * kScoreStride;
    if (p.out.products && begin == 0 && static_cast<int>(threadIdx.x) < columns) {
      p.out.products[(b * query.heads + h) * p.tokens + j0 + threadIdx.x] = shared.scores[threadIdx.x];
    }
    float highest = top;
    for (int j = part; j < columns; j += 4) {
      if (seen(j0 + j)) highest = fmaxf(highest, sign * scores[j]);
    }
    highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, 1));
    highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, 2));
    const float scaling = top == -INFINITY ? 0.f : softmax_term(sign * top, sign * highest, scale_log2);
    sum *= scaling;
    first *= scaling;
    top = highest;
    for (int j = part; j < columns; j += 4) {
      if (!seen(j0 + j)) continue;
      const float term = softmax_term(scores[j], sign * top, scale_log2);
      if (j0 + j < p.first) {
        first += term;
      } else {
        sum += term;
      }
    }
    __syncthreads();
  }
  sum += __shfl_xor_sync(kAllLanes, sum, 1);
  sum += __shfl_xor_sync(kAllLanes, sum, 2);
  first += __shfl_xor_sync(kAllLanes, first, 1);
  first += __shfl_xor_sync(kAllLanes, first, 2);
  if (part == 0 && row < rows) {
    const int64_t at = (b * query.heads + h) * p.count + begin + row;
    const float total = sum + first;
    p.out.top[at] = sign * top;
    p.out.inverse[at] = kMasked && total == 0.f ? 0.f : 1.f / total;  // a query that may attend to nobody
    if (p.out.patch_sum) p.out.patch_sum[at] = sum / total;
  }
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
    FICOCO_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(TileShared<T>)));
    const dim3 grid(ceil_div(p.count, kTile), p.query.heads, p.batch);
    kernel<<<grid, kTileThreads, sizeof(TileShared<T>), stream>>>(p, view<T>(p.query), view<T>(p.key));
    return launched();
  });
}

}  // namespace ficoco
