// correlate.tokens as a part of another operator, which has the softmax statistics already.
#pragma once
#include "cuda/choose.cuh"
#include "cuda/row_softmax.cuh"
#include "cuda/utils.cuh"

namespace ficoco {

constexpr int kWaySources = 32;  // of a block, which choose their targets together

struct KnownTokens {
  RowSoftmax all;         // of all tokens; for probabilities
  const int64_t* places;  // (B, m) what is written for each candidate
  uint32_t* counters;     // (B, counter_step): of each image the first ceil_div(r, kWaySources) are 0
  int64_t counter_step;
};

struct CorrelateTokensWork {
  float *direct, *way, *from;
  RowSoftmax sources, others;  // without KnownTokens
  Ranked* lists;               // with them
};

CorrelateTokensWork take_correlate_tokens(const CorrelateTokensParams& p, bool known, Pieces& pieces);
// Two kernels.
cudaError_t launch_correlate_tokens(const CorrelateTokensParams& p, const KnownTokens& known,
                                    const CorrelateTokensWork& w, cudaStream_t stream);

}  // namespace ficoco
