// Sums over a block and over a grid, an argmax with one 64-bit atomic, a struct as an argument.
#include "common.cuh"

template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    block_sum_kernel(const float* __restrict__ x, float* __restrict__ out, int n) {
  __shared__ float part[kThreads / 32];
  const float* row = x + static_cast<size_t>(blockIdx.x) * n;
#ifdef BUG_MISALIGNED
  ++row;  // four bytes on: no place for a float4
#endif
  float sum = 0.f;
  for (int i = threadIdx.x; i < n / 4 - 1; i += kThreads) {
    const float4 v = reinterpret_cast<const float4*>(row)[i];
    sum += v.x + v.y + v.z + v.w;
  }
  if (threadIdx.x == 0) {
    const float4 v = __ldg(reinterpret_cast<const float4*>(x + static_cast<size_t>(blockIdx.x) * n) + n / 4 - 1);
    sum += v.x + v.y + v.z + v.w;
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
#if defined(BUG_NO_BARRIER)
#elif defined(BUG_DIVERGENT)
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
#else
  __syncthreads();
#endif
  if (threadIdx.x < 32) {
    sum = warp_sum(threadIdx.x < kThreads / 32 ? part[threadIdx.x] : 0.f);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
  }
}

// <<<a comment>>>(that looks like a launch) and a "string <<<like>>>(it)" stay as they are.
EXPORT int block_sum(const float* x, float* out, int rows, int n, int threads) {
  auto run = [&](auto width) { block_sum_kernel<decltype(width)::value><<<rows, width(), 0, nullptr>>>(x, out, n); };
  switch (threads) {
    case 64: run(std::integral_constant<int, 64>()); break;
    case 128: run(std::integral_constant<int, 128>()); break;
    case 512: block_sum_kernel<(256 > 1) ? 512 : 0> /* spaced */<<<rows, 512>>>(x, out, n); break;
    default: return cudaErrorInvalidValue;
  }
  return cudaGetLastError();
}

// Each block leaves its sum in memory; the last one to finish adds them, in a fixed order.
__global__ void grid_sum_kernel(const float* __restrict__ x, int n, volatile float* part, unsigned* done, float* out) {
  __shared__ bool last;
  float sum = 0.f;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += x[i];
  sum = warp_sum(sum);
  if (threadIdx.x == 0) {
    part[blockIdx.x] = sum;
    __threadfence();
#ifdef BUG_LAST_BLOCK
    last = blockIdx.x == gridDim.x - 1;  // blocks come in no order
#else
    last = atomicInc(done, gridDim.x - 1) == gridDim.x - 1;
#endif
  }
  __syncthreads();
  if (!last) return;
  sum = 0.f;
  for (unsigned i = threadIdx.x; i < gridDim.x; i += 32) sum += part[i];
  sum = warp_sum(sum);
  if (threadIdx.x == 0) *out = sum;
}

EXPORT int grid_sum(const float* x, int n, float* part, unsigned* done, float* out, int blocks) {
  if (cudaMemsetAsync(done, 0, sizeof *done, nullptr) != cudaSuccess) return cudaPeekAtLastError();
  grid_sum_kernel<<<blocks, 32>>>(x, n, part, done, out);
  return cudaGetLastError();
}

// The largest of x, the lowest index among equals: the order of floats as integers, over the index upside down.
__global__ void argmax_kernel(const float* __restrict__ x, int n, unsigned long long* best) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
    const unsigned bits = __float_as_uint(x[i]);
    const unsigned key = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    atomicMax(best, static_cast<unsigned long long>(key) << 32 | (0xffffffffu - static_cast<unsigned>(i)));
  }
}

EXPORT int argmax(const float* x, int n, unsigned long long* best) {
  cudaMemsetAsync(best, 0, sizeof *best, nullptr);
  argmax_kernel<<<dim3(3, 1), dim3(32, 2)>>>(x, n, best);
  return cudaGetLastError();
}

struct Affine {
  const float* x;
  float* y;
  int n;
  float scale, shift;
};

__global__ void affine_kernel(const __grid_constant__ Affine p) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
#ifdef BUG_GLOBAL
  if (i <= p.n) p.y[i] = __fmaf_rn(p.x[i < p.n ? i : 0], p.scale, p.shift);
#else
  if (i < p.n) __stcs(p.y + i, __fmaf_rn(__ldcs(p.x + i), p.scale, p.shift));
#endif
}

EXPORT int affine(const float* x, float* y, int n, float scale, float shift) {
  affine_kernel<<<(n + 63) / 64 + 1, 64>>>(Affine{x, y, n, scale, shift});
  return cudaGetLastError();
}
