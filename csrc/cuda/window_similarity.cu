// How alike the patches of each window of a grid are.
//
// The sum of the cosines of all pairs of unit vectors is |their sum|^2 - the sum of their squares, so no pair is
// formed. A block owns a window. Its warps take the lengths of the patches, then each thread adds up some channels of
// the patches at unit length. The second reading comes from a cache: bound by memory, P C numbers. 6 P C FLOPs, 8.3 KB
// of shared memory.
#include "cuda/launch.h"
#include "cuda/utils.cuh"

namespace ficoco {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kCells = kMaxWindow * kMaxWindow;
constexpr int kBatch = 4;  // reads of a lane in flight at once
constexpr float kLeast = 1e-8f;

// The patches of one window, line by line.
template <class T>
struct Window {
  const T* corner;
  int64_t stride, line;  // between patches of a line, and between lines
  int side;
  __device__ const T* patch(int i) const { return corner + i / side * line + i % side * stride; }
};

template <class T, bool kVector>
__global__ void __launch_bounds__(kThreads, 2) window_similarity_kernel(WindowSimilarityParams p, View<T> tokens) {
  __shared__ float inverse[kCells], own[kCells];
  __shared__ float shared[kWarp];
  const int lane = threadIdx.x % kWarp, side = static_cast<int>(p.window), patches = side * side;
  const int64_t window = blockIdx.x, b = blockIdx.y, width = p.width;
  const int64_t corner = window / p.across * side * p.grid_width + window % p.across * side;
  const Window<T> of{tokens.row(b, 0, corner), tokens.stride_n, tokens.stride_n * p.grid_width, side};
  for (int i = threadIdx.x / kWarp; i < patches; i += kWarps) {
    const T* x = of.patch(i);
    float squares = 0.f;
    for (int64_t c0 = lane * kPer<T>; c0 < width; c0 += kBatch * kWarp * kPer<T>) {
      Pack<T> pack[kBatch];
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        const int64_t c = c0 + k * kWarp * kPer<T>;
        pack[k] = {};
        if (c < width) pack[k] = load_pack<T, kVector>(x + c, width - c);
      }
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
#pragma unroll
        for (int e = 0; e < kPer<T>; ++e) squares = fmaf(to_float(pack[k].x[e]), to_float(pack[k].x[e]), squares);
      }
    }
    squares = warp_sum(squares);
    if (lane > 0) continue;
    inverse[i] = 1.f / fmaxf(sqrtf(squares), kLeast);
    own[i] = squares * inverse[i] * inverse[i];
  }
  __syncthreads();
  float both = 0.f;
  for (int64_t c = threadIdx.x * kPer<T>; c < width; c += kThreads * kPer<T>) {
    float sum[kPer<T>] = {};
    for (int i0 = 0; i0 < patches; i0 += kBatch) {
      Pack<T> pack[kBatch];
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        pack[k] = {};
        if (i0 + k < patches) pack[k] = load_pack<T, kVector>(of.patch(i0 + k) + c, width - c);
      }
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        if (i0 + k >= patches) break;
        const float factor = inverse[i0 + k];
#pragma unroll
        for (int e = 0; e < kPer<T>; ++e) sum[e] = fmaf(factor, to_float(pack[k].x[e]), sum[e]);
      }
    }
#pragma unroll
    for (int e = 0; e < kPer<T>; ++e) both = fmaf(sum[e], sum[e], both);
  }
  float alone = 0.f;
  for (int i = threadIdx.x; i < patches; i += kThreads) alone += own[i];
  both = block_sum(both, shared);
  alone = block_sum(alone, shared);
  if (threadIdx.x > 0) return;
  const float pairs = static_cast<float>(patches) * static_cast<float>(patches - 1);
  p.similarity[b * gridDim.x + window] = (both - alone) / pairs;
}

}  // namespace

cudaError_t launch_window_similarity(const WindowSimilarityParams& p, cudaStream_t stream) {
  const int64_t windows = p.down * p.across;
  if (p.batch * windows == 0) return cudaSuccess;
  if (p.window > kMaxWindow) return cudaErrorInvalidValue;
  return with_type(p.tokens.dtype, vectorised(p.tokens, p.width), [&](auto type, auto vector) {
    using T = decltype(type);
    window_similarity_kernel<T, decltype(vector)::value>
        <<<dim3(windows, p.batch), kThreads, 0, stream>>>(p, view<T>(p.tokens));
    return launched();
  });
}

}  // namespace ficoco
