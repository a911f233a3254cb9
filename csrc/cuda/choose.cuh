// The k targets of one source and their weights, by one warp, from a row of correlations.
#pragma once
#include "cuda/utils.cuh"

namespace ficoco {

// `scores` holds `candidates` >= k values; targets and weights are this source's k. The chosen are found one after the
// other: each time the best of those that come after the last one.
__device__ __forceinline__ void choose_targets(const float* scores, int candidates, int k, int64_t first, Alpha alpha,
                                               int64_t* targets, float* weights) {
  const int lane = threadIdx.x % kWarp;
  uint32_t last_key = 0xffffffffu;
  int last_place = -1;
  float top = 0.f, total = 0.f;
  for (int t = 0; t < k; ++t) {
    uint32_t key = 0;
    int place = candidates;  // worse than any
    for (int j = lane; j < candidates; j += kWarp) {
      const uint32_t mine = ordered(scores[j]);
      const bool left = mine < last_key || (mine == last_key && j > last_place);
      if (left) keep_better(key, place, mine, j);
    }
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      const uint32_t other_key = __shfl_xor_sync(kAllLanes, key, offset);
      const int other_place = __shfl_xor_sync(kAllLanes, place, offset);
      keep_better(key, place, other_key, other_place);
    }
    last_key = key;
    last_place = place;
    const float value = scores[place];
    if (t == 0) top = value;
    const float weight = alpha == Alpha::kSoftmax ? expf(value - top) : value;
    total += weight;
    if (lane == 0) {
      targets[t] = place + first;
      weights[t] = weight;
    }
  }
  if (lane != 0) return;
  const bool even = alpha == Alpha::kAverage || !(total > 0.f);
  for (int t = 0; t < k; ++t) weights[t] = even ? 1.f / static_cast<float>(k) : weights[t] / total;
}

}  // namespace ficoco
