// Bipartite soft matching: every even token finds the odd token whose key is most like its own, and the r best pairs
// merge. nearest.cpp finds the odd tokens.
#include <algorithm>
#include <limits>
#include <vector>

#include "cpu/choose.h"
#include "cpu/kernels.h"
#include "cpu/nearest.h"
#include "cpu/rows.h"
#include "cpu/simd.h"

namespace ficoco {
namespace {

bool finite(const Buffer<float>& metric, int64_t width, const Side& side) {
  bool nan = false;
  for (int64_t i = 0; i < side.count; ++i) nan |= simd.any_nan(metric.data() + side.token(i) * width, width);
  return !nan;
}

}  // namespace

Fault match_image(const MatchParams& p) {
  const Side even(2 * p.first, p.tokens), odd(p.distill ? 3 : 1, p.tokens);
  std::fill_n(p.redundancy, p.tokens - p.first, -std::numeric_limits<float>::infinity());
  std::vector<float> best;
  std::vector<int32_t> nearest;
  std::vector<uint64_t> order;
  if (even.count > 0 && odd.count > 0) {
    const Buffer<float> metric = unit_keys(p.key, p.tokens, p.width);
    if (simd.any_nan(metric.data(), p.tokens * p.width) &&  // the NaN may be a protected token's, which is allowed
        !(finite(metric, p.width, even) && finite(metric, p.width, odd))) {
      return Fault::kKeyNotFinite;
    }
    find_nearest(metric.data(), p.width, even, odd, best, nearest);
    order.reserve(even.count);
    for (int64_t i = 0; i < even.count; ++i) {
      p.redundancy[even.token(i) - p.first] = best[i];
      order.push_back(falling_rank(best[i], i));
    }
  }
  if (p.r > 0) std::nth_element(order.begin(), order.begin() + (p.r - 1), order.end());
  std::vector<int64_t> target(p.tokens, -1), kept_index(p.tokens);  // -1: stays
  for (int64_t i = 0; i < p.r; ++i) {
    const int64_t pair = order[i] & 0xffffffffu;
    target[even.token(pair)] = odd.token(nearest[pair]);
  }
  int64_t *source = p.sources, *targets = p.targets, kept = 0;
  for (int64_t i = 0; i < p.tokens; ++i) {
    if (target[i] >= 0) {
      *source++ = i;
    } else {
      kept_index[i] = kept;
      p.kept[kept++] = i;
    }
  }
  for (const int64_t token : target) {
    if (token >= 0) *targets++ = kept_index[token];
  }
  std::fill_n(p.weights, p.r, 1.f);
  return Fault::kNone;
}

}  // namespace ficoco
