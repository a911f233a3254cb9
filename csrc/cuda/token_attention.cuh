// A part of token_attention by probabilities.
#pragma once
#include "cuda/row_softmax.cuh"
#include "cuda/utils.cuh"

namespace ficoco {

// parts[b][h][set][token]: probabilities of one head between tokens and others, weighted; `softmax` of the queries, of
// all tokens only with `column`. A kernel for every four sets.
cudaError_t launch_head_sums(const TokenAttentionParams& p, const RowSoftmax& softmax, float* parts,
                             cudaStream_t stream);

}  // namespace ficoco
