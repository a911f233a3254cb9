// Shared by the kernels of test_host_emulation.py. Each has a planted bug that a -DBUG_... switches on.
#pragma once
#include <cuda_runtime.h>
#include <cstdint>

#define EXPORT extern "C" __attribute__((visibility("default")))

constexpr unsigned kAll = 0xffffffffu;

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int bits = 16; bits > 0; bits >>= 1) value += __shfl_xor_sync(kAll, value, bits);
  return value;
}

// The extern variable stands in a header on purpose: it has to be converted too.
template <class T>
__device__ __forceinline__ T* dynamic_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return reinterpret_cast<T*>(memory);
}
