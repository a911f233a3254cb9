// Softmax of a panel of query rows over the keys that each may attend to.
#pragma once
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
// key that it may not see; inverse[i] becomes 1 / their sum, 0 for a query that sees no key and for columns from
// `count` on.
inline void masked_softmax(const Visible& visible, const int64_t* queries, int64_t count, int64_t keys, int64_t width,
                           float scale, float* scores, float* inverse) {
  constexpr float kMasked = -std::numeric_limits<float>::infinity();
  bool somebody[kPanel] = {};
  for (int64_t t = 0; t < keys; ++t) {
    for (int64_t i = 0; i < count; ++i) {
      const bool seen = visible(queries[i], t);
      scores[t * width + i] = seen ? scores[t * width + i] * scale : kMasked;
      somebody[i] |= seen;
    }
    for (int64_t i = count; i < width; ++i) scores[t * width + i] = 0.f;
  }
  simd.exp_columns(scores, keys, width, 1.f, 0, inverse);
  for (int64_t i = 0; i < width; ++i) {
    inverse[i] = somebody[i] ? 1.f / inverse[i] : 0.f;
    if (i >= count || somebody[i]) continue;
    for (int64_t t = 0; t < keys; ++t) scores[t * width + i] = 0.f;  // NaN: the largest was minus infinity
  }
}

}  // namespace ficoco
