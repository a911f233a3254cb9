// Cosines of the features of tokens with other vectors: the kernel is in cosines.cuh, which greedy_select includes too.
#include "cuda/cosines.cuh"

namespace ficoco {

cudaError_t launch_cosines(const CosinesParams& p, cudaStream_t stream) {
  if (p.batch * p.tokens * p.thing_count == 0) return cudaSuccess;
  return launch_tiled_cosines<false>(p, stream);
}

}  // namespace ficoco
