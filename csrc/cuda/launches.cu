// Counts the launches, so that a test can say how many an operator takes.
#include <atomic>

#include "cuda/utils.cuh"

namespace ficoco {

static std::atomic<int64_t> count{0};

cudaError_t launched() {
  count.fetch_add(1, std::memory_order_relaxed);
  return cudaGetLastError();
}

int64_t launch_count() { return count.load(std::memory_order_relaxed); }

}  // namespace ficoco
