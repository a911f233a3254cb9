// Tokens picked one by one, each the one that covers most of what those before leave uncovered.
//
// A gain is the sum of a row of the cover, R numbers. The first pick reads all rows, B N R numbers, and each pick would
// again. But a gain only falls while more is covered, also as rounded: so an old gain is an upper bound, and only the
// candidate with the largest is computed again. Bound by the one pass over the cover, which is read where it lies.
#include <algorithm>
#include <cmath>
#include <limits>
#include <queue>

#include "cpu/choose.h"
#include "cpu/coverage.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace ficoco {

void pick_by_coverage(const Coverage& c, const std::vector<char>& free, Buffer<float>& covered) {
  const auto row = [&](int64_t j) { return c.rows + j * c.stride; };
  const auto gain = [&](int64_t j) {
    return (c.saliency ? c.saliency[j] : 1.f) * simd.sum_above(row(j), covered.data(), c.things);
  };
  std::vector<float> bound(c.candidates);
  each(c.candidates, [&](int64_t j) { bound[j] = gain(j); });
  std::vector<int64_t> computed(c.candidates, 0);  // the step at which its bound was
  std::vector<uint64_t> ranks;
  for (int64_t j = 0; j < c.candidates; ++j) {
    if (free[j]) ranks.push_back(falling_rank(bound[j], j));
  }
  std::priority_queue bounds(std::greater<uint64_t>(), std::move(ranks));
  for (int64_t step = 0; step < c.count; ++step) {
    int64_t first = bounds.top() & 0xffffffffu;
    while (computed[first] != step) {
      bounds.pop();
      bound[first] = gain(first);
      computed[first] = step;
      bounds.push(falling_rank(bound[first], first));
      first = bounds.top() & 0xffffffffu;
    }
    bounds.pop();
    c.order[step] = first;
    c.gains[step] = bound[first];
    const float* most = row(first);
    for (int64_t i = 0; i < c.things; ++i) covered[i] = most[i] > covered[i] ? most[i] : covered[i];
  }
}

namespace {

bool all_finite(const float* x, int64_t n) {
  int32_t bad = 0;
#pragma omp simd reduction(| : bad)
  for (int64_t i = 0; i < n; ++i) bad |= !(std::fabs(x[i]) <= std::numeric_limits<float>::max());
  return bad == 0;
}

}  // namespace

Fault greedy_cover_image(const GreedyCoverParams& p) {
  std::vector<char> free(p.tokens, 1);
  if (p.mask) std::copy_n(p.mask, p.tokens, free.begin());
  const auto* rows = static_cast<const float*>(p.cover.data);
  std::vector<char> bad(p.tokens, 0);
  each(p.tokens, [&](int64_t j) { bad[j] = free[j] && !all_finite(rows + j * p.cover.stride_n, p.things); });
  if (std::find(bad.begin(), bad.end(), 1) != bad.end()) return Fault::kCoverNotFinite;
  if (std::count(free.begin(), free.end(), 1) < p.count) return Fault::kTooFewToCover;
  if (p.count == 0) return Fault::kNone;
  Buffer<float> covered(p.things);
  std::fill_n(covered.data(), p.things, 0.f);
  pick_by_coverage({rows, p.cover.stride_n, p.tokens, p.things, p.count, nullptr, p.order, p.gains}, free, covered);
  return Fault::kNone;
}

}  // namespace ficoco
