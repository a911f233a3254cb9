// Selections: top-k by a bitonic sort, a histogram, a shift to the neighbour's place.
#include "common.cuh"

__device__ __forceinline__ bool before(float a, int i, float b, int j) { return a > b || (a == b && i < j); }

// The k largest of each row in descending order; the lowest index wins among equals.
__global__ void topk_kernel(const float* __restrict__ x, int n, int padded, int k, float* value, int* index) {
  float* v = dynamic_memory<float>();
  int* id = reinterpret_cast<int*>(v + padded);
#ifdef BUG_DYNAMIC_SHARED
  for (int i = threadIdx.x; i <= padded; i += blockDim.x) {
#else
  for (int i = threadIdx.x; i < padded; i += blockDim.x) {
#endif
    id[i] = i;
    v[i] = i < n ? x[blockIdx.x * n + i] : -INFINITY;
  }
  __syncthreads();
  for (int size = 2; size <= padded; size <<= 1) {
    for (int stride = size >> 1; stride > 0; stride >>= 1) {
      for (int t = threadIdx.x; t < padded / 2; t += blockDim.x) {
        const int low = 2 * t - (t & (stride - 1)), high = low + stride;
        if (before(v[high], id[high], v[low], id[low]) == ((low & size) == 0)) {
          const float f = v[low];
          const int j = id[low];
          v[low] = v[high], id[low] = id[high];
          v[high] = f, id[high] = j;
        }
      }
#ifndef BUG_SORT_BARRIER
      __syncthreads();
#endif
    }
  }
  for (int i = threadIdx.x; i < k; i += blockDim.x) {
    value[blockIdx.x * k + i] = v[i];
    index[blockIdx.x * k + i] = id[i];
  }
}

EXPORT int topk(const float* x, int rows, int n, int k, float* value, int* index) {
  int padded = 1;
  while (padded < n) padded *= 2;
  const size_t bytes = padded * (sizeof(float) + sizeof(int));
  topk_kernel<<<rows, 64, bytes>>>(x, n, padded, k, value, index);
  return cudaGetLastError();
}

constexpr int kBins = 64;

__global__ void histogram_kernel(const int* __restrict__ x, int n, int* out) {
  __shared__ int bins[kBins];
  for (int i = threadIdx.x; i < kBins; i += blockDim.x) bins[i] = 0;
  __syncthreads();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
    int* bin = bins + x[i];  // a pointer: UBSan's check of array bounds is not what finds it
#ifdef BUG_STATIC_SHARED
    ++bin;
#endif
    atomicAdd(bin, 1);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kBins; i += blockDim.x) atomicAdd(&out[i], bins[i]);
}

EXPORT int histogram(const int* x, int n, int* out) {
  cudaMemsetAsync(out, 0, kBins * sizeof(int), nullptr);
  histogram_kernel<<<4, 96>>>(x, n, out);
  return cudaGetLastError();
}

// out[i] = x[i - 1] within each block. Without its barrier it is right as long as threads run in order.
__global__ void shift_kernel(const float* __restrict__ x, float* out) {
  __shared__ float tile[128];
  const int i = blockIdx.x * 128 + threadIdx.x;
  tile[threadIdx.x] = x[i];
#ifndef BUG_SHIFT_BARRIER
  __syncthreads();
#endif
  out[i] = threadIdx.x == 0 ? 0.f : tile[threadIdx.x - 1];
}

EXPORT int shift(const float* x, float* out, int blocks) {
  shift_kernel<<<blocks, 128>>>(x, out);
  return cudaGetLastError();
}

// What shared memory holds before anything is written: out[0] static, out[1] dynamic; then it is written, for the next
// block to find if nothing wiped it.
__global__ void unwritten_kernel(float* out) {
  __shared__ float fixed[4], other;
  float* dynamic = dynamic_memory<float>();
  if (threadIdx.x == 0) {
    out[3 * blockIdx.x] = fixed[3];
    out[3 * blockIdx.x + 1] = dynamic[7];
    out[3 * blockIdx.x + 2] = other;
    fixed[3] = dynamic[7] = other = 1.f;
  }
}

EXPORT int unwritten(float* out, int blocks) {
  unwritten_kernel<<<blocks, 32, 8 * sizeof(float)>>>(out);
  return cudaGetLastError();
}

template <class T, int kStep>
__global__ void fill_kernel(T* out, int n) {
  T* memory = dynamic_memory<T>();
  for (int i = threadIdx.x; i < n; i += blockDim.x) memory[i] = static_cast<T>(kStep * i);
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = memory[n - 1 - i];
}

// Dynamic shared memory beyond 48 KiB needs the attribute, here as on a GPU.
EXPORT int fill(int* out, int n, int threads, bool opt_in) {
  const int bytes = n * static_cast<int>(sizeof(int));
  if (opt_in) {
    const auto done = cudaFuncSetAttribute(fill_kernel<int, 3>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (done != cudaSuccess) return cudaGetLastError();
    fill_kernel<int, 3><<<1, threads, bytes>>>(out, n);
  } else {
    fill_kernel<int, 5><<<1, threads, bytes>>>(out, n);
  }
  return cudaGetLastError();
}

EXPORT int attribute(int which) {
  int device = -1, value = -1;
  cudaGetDevice(&device);
  const cudaError_t error = cudaDeviceGetAttribute(&value, static_cast<cudaDeviceAttr>(which), device);
  return error == cudaSuccess ? value : -static_cast<int>(error);
}

EXPORT int copy(void* to, const void* from, size_t bytes) {
  return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, nullptr);
}
