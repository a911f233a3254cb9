// The k targets of one source and their weights, from its correlations.
#pragma once
#include "cuda/utils.cuh"

namespace ficoco {

// A correlation and its index, as one number. Larger is better: the higher correlation, then the lower index.
// Of all correlations, 0 is worse than any and ~0 better.
using Ranked = unsigned long long;

__device__ __forceinline__ Ranked ranked(float score, int index) {
  return static_cast<Ranked>(ordered(score)) << 32 | (0x7fffffffu - static_cast<uint32_t>(index));
}
__device__ __forceinline__ Ranked ranked(Ranked one, int) { return one; }
__device__ __forceinline__ float score_of(Ranked one) { return from_ordered(static_cast<uint32_t>(one >> 32)); }
__device__ __forceinline__ int place_of(Ranked one) {
  return static_cast<int>(0x7fffffffu - static_cast<uint32_t>(one & 0xffffffffu));
}

// The best value of kLanes neighbouring lanes. All lanes of the warp call it.
template <int kLanes>
__device__ __forceinline__ Ranked best_of_lanes(Ranked one) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    one = max(one, static_cast<Ranked>(__shfl_xor_sync(kAllLanes, one, offset)));
  }
  return one;
}

// Source `at` of the batch, by kLanes lanes, from `count` >= k scores or ranked ones. The chosen are found one after
// the other: each time the best of those that come after the last one. target_of(i) is what is written for candidate i.
// All lanes of the warp call it, those of a group without a source with `exists` false.
template <int kLanes, class Score, class TargetOf>
__device__ __forceinline__ void choose_targets(const CorrelateParams& p, const Score* scores, int count, int64_t at,
                                               bool exists, const TargetOf& target_of) {
  const int lane = threadIdx.x % kLanes, k = static_cast<int>(p.k);
  int64_t* targets = p.targets + at * p.k;
  float* weights = p.weights + at * p.k;
  Ranked last = ~Ranked{0};
  float top = 0.f, total = 0.f, own = 0.f;  // own: the weight of target `lane`
  for (int t = 0; t < k; ++t) {
    Ranked best = 0;
    for (int j = lane; j < count; j += kLanes) {
      const Ranked one = ranked(scores[j], j);
      if (one < last) best = max(best, one);
    }
    last = best = best_of_lanes<kLanes>(best);
    const float value = score_of(best);
    if (t == 0) top = value;
    const float weight = p.alpha == Alpha::kSoftmax ? expf(value - top) : value;
    total += weight;
    if (t == lane) own = weight;
    if (t % kLanes != lane || !exists) continue;
    targets[t] = target_of(place_of(best));
    if (t != lane) weights[t] = weight;
  }
  if (!exists) return;
  const bool even = p.alpha == Alpha::kAverage || !(total > 0.f);
  for (int t = lane; t < k; t += kLanes) {
    weights[t] = even ? 1.f / static_cast<float>(k) : (t == lane ? own : weights[t]) / total;
  }
}

// Targets are the candidates' indices after the class token.
template <int kLanes, class Score>
__device__ __forceinline__ void choose_targets(const CorrelateParams& p, const Score* scores, int count, int64_t at,
                                               bool exists) {
  choose_targets<kLanes>(p, scores, count, at, exists, [&](int candidate) { return candidate + p.first; });
}

}  // namespace ficoco
