// Softmax of a panel of query rows over the keys that each may attend to.
#pragma once
#include <algorithm>
#include <limits>

#include "cpu/simd.h"

namespace ficoco {

// The keys that a query may attend to: real ones, and with `causal` none after it.
struct Visible {
  const bool* key_mask;  // (T), or nullptr
  bool causal;
  bool operator()(int64_t query_token, int64_t key) const {
    return (!key_mask || key_mask[key]) && (!causal || key <= query_token);
  }
};

// scores [keys][width] of the queries of tokens queries[0..count) become softmax numerators of scale * score, 0 for a
// key that it may not see; inverse[i] becomes 1 / their sum, and 0 for columns from `count` on. If the softmax of
// what a query sees is NaN, then all that it sees is NaN, and the rest 0.
inline void masked_softmax(const Visible& visible, const int64_t* queries, int64_t count, int64_t keys, int64_t width,
                           float scale, float* scores, float* inverse) {
  constexpr float kMasked = -std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();
  const int64_t nearest = *std::min_element(queries, queries + count);  // keys up to it are before no query
  for (int64_t t = 0; t < keys; ++t) {
    float* row = scores + t * width;
    if (visible.key_mask && !visible.key_mask[t]) {
      for (int64_t i = 0; i < count; ++i) row[i] = kMasked;
    } else if (!visible.causal || t <= nearest) {
      for (int64_t i = 0; i < count; ++i) row[i] *= scale;
    } else {
      for (int64_t i = 0; i < count; ++i) row[i] = t <= queries[i] ? row[i] * scale : kMasked;
    }
    for (int64_t i = count; i < width; ++i) row[i] = 0.f;
  }
  simd.exp_columns(scores, keys, width, 1.f, 0, inverse);
  for (int64_t i = 0; i < width; ++i) {
    const bool number = inverse[i] > 0.f;  // else it sees no key, or one that is not finite, or minus infinity alone
    inverse[i] = i < count ? (number ? 1.f / inverse[i] : 1.f) : 0.f;
    if (number || i >= count) continue;
    for (int64_t t = 0; t < keys; ++t) scores[t * width + i] = visible(queries[i], t) ? kNan : 0.f;
  }
}

}  // namespace ficoco
