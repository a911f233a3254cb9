// Launches Correlate. `counters` are 0 or absent; the softmax statistics of all tokens may be absent.
#pragma once
#include "cuda/row_softmax.cuh"
#include "cuda/utils.cuh"

namespace ficoco {

// With `counters` (B), which are 0, the last block of an image chooses its targets; without them a second kernel does.
cudaError_t launch_correlate(const CorrelateParams& p, const KnownSoftmax& known, uint32_t* counters, Pieces& pieces,
                             cudaStream_t stream);
void take_correlate_workspace(const CorrelateParams& p, Pieces& pieces);
// The choice alone, from scores (B, r, kept_count - first).
cudaError_t launch_choose(const CorrelateParams& p, const float* scores, cudaStream_t stream);
bool can_choose_in_tail(const CorrelateParams& p);

}  // namespace ficoco
