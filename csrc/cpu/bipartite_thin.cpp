// Lists of tokens, thinned round by round: of every other token those leave that are most like one between them.
//
// All cosines of an image are computed once (pair_cosines.cpp), most of the time for 576 tokens of width 1024. A round
// then looks at a quarter of the list's length squared of them, by index: the order of the list changes in every round.
#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/choose.h"
#include "cpu/pair_cosines.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "cpu/simd.h"

namespace ficoco {
namespace {

constexpr int64_t kTask = 512;  // scores that one thread computes at once: a thread is woken for no fewer

std::vector<int32_t> real_tokens(const BipartiteThinParams& p) {
  std::vector<int32_t> list;
  for (int64_t i = 0; i < p.length; ++i) {
    if (!p.mask || p.mask[p.order[i]]) list.push_back(static_cast<int32_t>(p.order[i]));
  }
  return list;
}

// The largest of row[others[j]]; four at a time, so that one comparison need not wait for the last.
float largest(const float* row, const std::vector<int32_t>& others) {
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  float best[4] = {kLowest, kLowest, kLowest, kLowest};
  const int64_t count = static_cast<int64_t>(others.size());
  int64_t j = 0;
  for (; j + 4 <= count; j += 4) {
    for (int64_t e = 0; e < 4; ++e) best[e] = std::max(best[e], row[others[j + e]]);
  }
  for (; j < count; ++j) best[0] = std::max(best[0], row[others[j]]);
  const float found = std::max(std::max(best[0], best[1]), std::max(best[2], best[3]));
  return found > kAlike ? 1.f : found;
}

// One round: `list` without `leave` tokens, in its new order.
void thin(const float* cosine, int64_t tokens, int64_t leave, std::vector<int32_t>& list) {
  const int64_t evens = ceil_div(list.size(), 2);
  std::vector<int32_t> odd;
  for (size_t i = 1; i < list.size(); i += 2) odd.push_back(list[i]);
  std::vector<uint64_t> ranks(evens);
  each(ceil_div(evens, kTask), [&](int64_t task) {
    for (int64_t i = task * kTask; i < std::min(evens, (task + 1) * kTask); ++i) {
      ranks[i] = falling_rank(largest(cosine + list[2 * i] * tokens, odd), i);
    }
  });
  std::sort(ranks.begin(), ranks.end());
  std::vector<int32_t> next;
  for (int64_t i = leave; i < evens; ++i) next.push_back(list[2 * (ranks[i] & 0xffffffffu)]);
  next.insert(next.end(), odd.begin(), odd.end());
  list = std::move(next);
}

}  // namespace

Fault bipartite_thin_image(const BipartiteThinParams& p) {
  std::vector<int32_t> list = real_tokens(p);
  const Buffer<float> unit = unit_keys(p.features, p.tokens, p.width);
  const auto bad = [&](int32_t token) { return simd.any_nan(unit.data() + token * p.width, p.width); };
  if (std::any_of(list.begin(), list.end(), bad)) return Fault::kThinnedNotFinite;
  const auto length = [&] { return static_cast<int64_t>(list.size()); };
  if (length() < p.count) return Fault::kListTooShort;
  if (p.count == 0) return Fault::kNone;
  if (length() > p.count) {
    Buffer<float> cosine(p.tokens * p.tokens);
    pair_cosines(unit.data(), p.tokens, p.width, cosine.data());
    while (length() > p.count) {
      thin(cosine.data(), p.tokens, std::min({p.step, length() - p.count, ceil_div(length(), 2)}), list);
    }
  }
  std::copy(list.begin(), list.end(), p.left);
  return Fault::kNone;
}

}  // namespace ficoco
