// Bipartite soft matching: every even token finds the odd token whose key is most like its own, and the r best pairs
// merge. 2 |A| |B| d FLOPs an image, bound by arithmetic once the keys are averaged.
//
// Even tokens are packed into panels of at most 24 that run against blocks of odd ones; a block of similarities is
// compared with the best so far and forgotten, so the (|A|, |B|) matrix never exists.
//
// Tried and given up: comparing keys rounded to 16 bits first (AVX2 multiplies those at twice the rate) and only the
// partners within the rounding error in float. It came out 7 % faster.
#include <limits>

#include "cpu/kernels.h"

namespace ficoco {
namespace {

constexpr int64_t kBlock = 64;  // odd tokens whose similarities are held at once: 6 KiB

// Every other row of `metric` from `first` on.
struct Side {
  int64_t first, count;
  Side(int64_t first, int64_t tokens) : first(first), count(std::max<int64_t>((tokens - first + 1) / 2, 0)) {}
  int64_t token(int64_t i) const { return first + 2 * i; }
};

bool finite(const std::vector<float>& metric, int64_t width, const Side& side) {
  bool nan = false;
  for (int64_t i = 0; i < side.count; ++i) nan |= simd.any_nan(metric.data() + side.token(i) * width, width);
  return !nan;
}

// best[i] is the largest cosine of even token i with an odd one, nearest[i] the first odd token that has it.
void find_nearest(const std::vector<float>& metric, int64_t width, const Side& even, const Side& odd,
                  std::vector<float>& best, std::vector<int32_t>& nearest) {
  const int64_t panels = ceil_div(even.count, kPanel);
  best.assign(panels * kPanel, -std::numeric_limits<float>::infinity());
  nearest.assign(panels * kPanel, 0);
  each(panels, [&](int64_t panel) {
    const int64_t begin = panel * kPanel, count = std::min(kPanel, even.count - begin), w = panel_width(count);
    const float* rows[kPanel];
    for (int64_t i = 0; i < count; ++i) rows[i] = metric.data() + even.token(begin + i) * width;
    std::vector<float> packed(width * w), scores(kBlock * w);
    simd.pack_panel(rows, count, width, w, 1.f, packed.data());
    for (int64_t j = 0; j < odd.count; j += kBlock) {
      const int64_t block = std::min(kBlock, odd.count - j);
      std::fill_n(scores.begin(), block * w, 0.f);
      simd.panel_dot(packed.data(), w, width, metric.data() + odd.token(j) * width, 2 * width, nullptr, block,
                     scores.data());
      simd.max_columns(scores.data(), block, w, static_cast<int32_t>(j), best.data() + begin, nearest.data() + begin);
    }
  });
}

}  // namespace

Fault match_image(const MatchParams& p) {
  const Side even(2 * p.first, p.tokens), odd(p.distill ? 3 : 1, p.tokens);
  std::fill_n(p.redundancy, p.tokens - p.first, -std::numeric_limits<float>::infinity());
  std::vector<float> best;
  std::vector<int32_t> nearest;
  std::vector<uint64_t> order;
  if (even.count > 0 && odd.count > 0) {
    const std::vector<float> metric = unit_keys(p.key, p.tokens, p.width);
    if (!finite(metric, p.width, even) || !finite(metric, p.width, odd)) return Fault::kKeyNotFinite;
    find_nearest(metric, p.width, even, odd, best, nearest);
    for (int64_t i = 0; i < even.count; ++i) {
      p.redundancy[even.token(i) - p.first] = best[i];
      order.push_back(falling_rank(best[i], i));
    }
  }
  if (p.r > 0) std::nth_element(order.begin(), order.begin() + (p.r - 1), order.end());
  std::vector<int64_t> target(p.tokens, -1), place(p.tokens);  // -1: stays
  for (int64_t i = 0; i < p.r; ++i) {
    const int64_t pair = order[i] & 0xffffffffu;
    target[even.token(pair)] = odd.token(nearest[pair]);
  }
  int64_t *source = p.sources, *targets = p.targets, kept = 0;
  for (int64_t i = 0; i < p.tokens; ++i) {
    if (target[i] >= 0) {
      *source++ = i;
    } else {
      place[i] = kept;
      p.kept[kept++] = i;
    }
  }
  for (const int64_t token : target) {
    if (token >= 0) *targets++ = place[token];
  }
  std::fill_n(p.weights, p.r, 1.f);
  return Fault::kNone;
}

}  // namespace ficoco
