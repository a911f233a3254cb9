// token_attention by probabilities for what tokens receive from a few others, such as the last token of a prompt.
#pragma once
#include "cuda/utils.cuh"

namespace ficoco {

struct FewQueries {
  float* products;  // (B, H, R, T) unscaled
  float* parts;     // (B, H, R, chunks of keys, 2)
};

bool are_few_queries(const TokenAttentionParams& p);
FewQueries take_few_queries(const TokenAttentionParams& p, Pieces& pieces);
cudaError_t launch_few_queries(const TokenAttentionParams& p, const FewQueries& w, cudaStream_t stream);

}  // namespace ficoco
