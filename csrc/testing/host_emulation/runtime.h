// The functions of the CUDA runtime that a launcher calls. All work is done at once, so a stream is only a number.
// Weak, and in every file that includes this: C++ files of the same library may call them too. Hidden, so that they
// never stand in for a real libcudart of the process, nor it for them.
#pragma once
#include "launch.h"

#define CUEMU_RUNTIME extern "C" __attribute__((weak, visibility("hidden")))

CUEMU_RUNTIME cudaError_t cudaGetLastError() { return std::exchange(cuemu::last_error, cudaSuccess); }
CUEMU_RUNTIME cudaError_t cudaPeekAtLastError() { return cuemu::last_error; }
CUEMU_RUNTIME cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
CUEMU_RUNTIME cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

CUEMU_RUNTIME const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    default: return "an error that the emulation never gives";
  }
}
CUEMU_RUNTIME const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

CUEMU_RUNTIME cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
CUEMU_RUNTIME cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
CUEMU_RUNTIME cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

// An attribute that is not listed is an error, so that no launcher decides by a number that was made up.
CUEMU_RUNTIME cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return cudaErrorInvalidDevice;
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = cuemu::kMultiprocessors; break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = static_cast<int>(std::min(cuemu::kSharedByDefault, cuemu::shared_opt_in()));
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = static_cast<int>(cuemu::shared_opt_in()); break;
    case cudaDevAttrReservedSharedMemoryPerBlock: *value = 1024; break;
    case cudaDevAttrComputeCapabilityMajor: *value = cuemu::capability() / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = cuemu::capability() % 10; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrMaxGridDimX: *value = 0x7fffffff; break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: *value = 65535; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    default: return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}

CUEMU_RUNTIME cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
CUEMU_RUNTIME cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  return cudaMemset(to, value, bytes);
}
CUEMU_RUNTIME cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
CUEMU_RUNTIME cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}

// Without it, a launch with more than 48 KiB of dynamic shared memory fails, here as there.
CUEMU_RUNTIME cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || static_cast<size_t>(value) > cuemu::shared_opt_in()) {
    return cuemu::last_error = cudaErrorInvalidValue;
  }
  const std::lock_guard<std::mutex> lock(cuemu::mutex);
  cuemu::opted_in[kernel] = static_cast<size_t>(value);
  return cudaSuccess;
}
template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

CUEMU_RUNTIME cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel, int threads,
                                                                        size_t shared) {
  const bool fits = threads > 0 && threads <= 1024 && shared <= cuemu::shared_limit(kernel);
  *blocks = fits ? 2048 / ((threads + 31) / 32 * 32) : 0;
  if (fits && shared > 0) *blocks = std::min<int>(*blocks, static_cast<int>(cuemu::shared_opt_in() / shared));
  return cudaSuccess;
}
template <class... Parameters>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*kernel)(Parameters...), int threads,
                                                          size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, reinterpret_cast<const void*>(kernel), threads, shared);
}
