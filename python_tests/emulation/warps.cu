// Warp operations and intrinsics, one row of 32 results each, and products on tensor cores.
#include "common.cuh"
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include "cuda/ptx.cuh"

__global__ void lanes_kernel(const unsigned* __restrict__ x, unsigned* out) {
  const unsigned lane = threadIdx.x, v = x[lane];
  int row = 0;
  auto put = [&](unsigned value) { out[32 * row++ + lane] = value; };
#ifdef BUG_MASK
  put(__shfl_xor_sync(0x7fffffffu, v, 5));  // lane 31 calls it too
#else
  put(__shfl_xor_sync(kAll, v, 5));
#endif
  put(__shfl_up_sync(kAll, v, 3));
  put(__shfl_down_sync(kAll, v, 7, 16));
  put(__shfl_sync(kAll, v, 9, 8));
  put(__ballot_sync(kAll, v % 3 == 0));
  put(__match_any_sync(kAll, v % 4));
  put(__reduce_add_sync(kAll, v));
  put(__reduce_max_sync(kAll, v));
  put(__any_sync(kAll, v == 7) * 2 + __all_sync(kAll, v != 7));
  // Halves of the warp, each with its own mask, and the second goes on while the first still waits.
  const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  put(__reduce_add_sync(half, v));
  // A lane alone, after a common operation: its later one must not disturb what the others got.
  const unsigned shared = __shfl_sync(kAll, v, 0);
  const unsigned own = lane == 0 ? __shfl_sync(1u, v + 1, 0) : 0u;
  __syncwarp();
  put(shared + own);
  put(__brev(v));
  put(__ffsll(static_cast<long long>(v) << 20));
  put(__clzll(static_cast<long long>(v)));
  put(__funnelshift_r(v, ~v, lane));
  put(__popc(v) + __clz(static_cast<int>(v)) + __ffs(static_cast<int>(v)));
  put(static_cast<unsigned>(__syncthreads_count(v % 3 == 0)));
  put(static_cast<unsigned>(__float2int_rn(sqrtf(exp2f(fmaxf(static_cast<float>(v % 8), 2.f))))));
}

EXPORT int lanes(const unsigned* x, unsigned* out) {
  lanes_kernel<<<1, 32>>>(x, out);
  return cudaGetLastError();
}

// C = A B^T, 32 x 32 of C by a block of four warps. K is a multiple of 16.
template <class T>
__global__ void __launch_bounds__(128)
    gemm_kernel(const T* __restrict__ a, const T* __restrict__ b, float* __restrict__ c, int n, int k) {
  __shared__ __align__(16) T tile_a[32 * 16];
  __shared__ __align__(16) T tile_b[32 * 16];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = blockIdx.y * 32, column = blockIdx.x * 32;
  float sums[2][4] = {};  // eight columns each
  for (int start = 0; start < k; start += 16) {
    const bool second = threadIdx.x >= 64;
    const int r = threadIdx.x % 64 / 2, at = threadIdx.x % 2 * 8;
    const T* from = second ? b + (column + r) * k + start + at : a + (row + r) * k + start + at;
#ifdef BUG_GEMM_COPY
    if (start + 16 >= k) from += 64 * k;
#endif
    ficoco::copy_async<16>((second ? tile_b : tile_a) + r * 16 + at, from, true);
    ficoco::commit_copies();
#ifndef BUG_GEMM_WAIT
    ficoco::wait_for_copies<0>();
#endif
    __syncthreads();
    uint32_t fa[4], fb[4];
    ficoco::load_matrices(fa, tile_a + (warp / 2 * 16 + lane % 16) * 16 + lane / 16 * 8);
    ficoco::load_matrices(fb, tile_b + (warp % 2 * 16 + lane % 8 + lane / 16 * 8) * 16 + lane / 8 % 2 * 8);
    ficoco::multiply_add<T>(sums[0], fa, fb[0], fb[1]);
    ficoco::multiply_add<T>(sums[1], fa, fb[2], fb[3]);
#ifndef BUG_GEMM_BARRIER
    __syncthreads();
#endif
  }
  float* out = c + (row + warp / 2 * 16 + lane / 4) * n + column + warp % 2 * 16 + lane % 4 * 2;
  for (int e = 0; e < 8; ++e) out[e / 2 % 2 * 8 * n + e / 4 * 8 + e % 2] = sums[e / 4][e % 4];
}

EXPORT int gemm(const void* a, const void* b, float* c, int m, int n, int k, bool bfloat16) {
  const dim3 grid(n / 32, m / 32);
  if (bfloat16) {
    using T = __nv_bfloat16;
    gemm_kernel<T><<<grid, 128>>>(static_cast<const T*>(a), static_cast<const T*>(b), c, n, k);
  } else {
    gemm_kernel<__half>
        <<<grid, 128, 0, cudaStream_t{}>>>(static_cast<const __half*>(a), static_cast<const __half*>(b), c, n, k);
  }
  return cudaGetLastError();
}

// Pairs through half2 and bfloat162 and back: the toolkit's own conversions.
__global__ void round_kernel(const float2* __restrict__ x, float2* as_half, float2* as_bfloat16, int n) {
  const int i = threadIdx.x;
  if (i >= n) return;
  const float2 v = x[i];
  __half2 h = __float22half2_rn(v);
  h.x = __float2half_rn(v.x);
  as_half[i] = __half22float2(__shfl_xor_sync(kAll, __shfl_xor_sync(kAll, h, 1), 1));
  as_bfloat16[i] = __bfloat1622float2(__floats2bfloat162_rn(v.x, v.y));
}

EXPORT int rounded(const float* x, float* as_half, float* as_bfloat16, int n) {
  round_kernel<<<1, 64>>>(reinterpret_cast<const float2*>(x), reinterpret_cast<float2*>(as_half),
                          reinterpret_cast<float2*>(as_bfloat16), n);
  return cudaGetLastError();
}
