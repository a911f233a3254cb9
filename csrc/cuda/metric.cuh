// The features by which keys are compared: their mean over heads, at unit length if wanted.
#pragma once
#include "cuda/utils.cuh"

namespace ficoco {

struct MetricParams {
  Rows key;  // (B, Hk, N, d)
  int64_t batch, tokens, width;
  bool unit;
  float* metric;                 // (B, N, d)
  uint32_t* counters = nullptr;  // (B): set to 0 for a later kernel
};

cudaError_t launch_metric(const MetricParams& p, cudaStream_t stream);

}  // namespace ficoco
