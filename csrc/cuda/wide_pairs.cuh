// Launches the sums of probabilities between many tokens, where a row of half precision fits into registers.
#pragma once
#include "cuda/row_softmax.cuh"
#include "cuda/utils.cuh"

namespace ficoco {

bool are_wide_pairs(const TokenAttentionParams& p);
// parts[b][h][set][token]: probabilities of one head between tokens and others, weighted; `softmax` of the queries.
cudaError_t launch_wide_pairs(const TokenAttentionParams& p, const RowSoftmax& softmax, float* parts,
                              cudaStream_t stream);

}  // namespace ficoco
