// Counts the launches, so that a test can check how many an operator takes.
#include <atomic>

#include "cuda/utils.cuh"

namespace ficoco {

static std::atomic<int64_t> count{0};

cudaError_t launched() {
  count.fetch_add(1, std::memory_order_relaxed);
  return cudaGetLastError();
}

cudaError_t failed(cudaError_t error) {
  cudaGetLastError();
  return error;
}

cudaError_t has_shared(size_t bytes, bool& has) {
  int device = 0, most = 0;
  FICOCO_TRY(cudaGetDevice(&device));
  FICOCO_TRY(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  has = bytes <= static_cast<size_t>(most);
  return cudaSuccess;
}

cudaError_t set_to_zero(void* data, size_t bytes, cudaStream_t stream) {
  const cudaError_t error = cudaMemsetAsync(data, 0, bytes, stream);
  return error == cudaSuccess ? error : failed(error);
}

int64_t launch_count() { return count.load(std::memory_order_relaxed); }

}  // namespace ficoco
