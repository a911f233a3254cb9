// Cosines of all pairs of tokens of every image.
#pragma once
#include "cuda/utils.cuh"

namespace ficoco {

// (B, N, N) of `features` (B, N, D), N >= 1; symmetric. One above kAlike is 1.
cudaError_t launch_pair_cosines(const Rows& features, int64_t batch, int64_t tokens, int64_t width, float* cosines,
                                cudaStream_t stream);

}  // namespace ficoco
