// Lists of tokens, thinned round by round: of every other token those leave that are most like one between them.
//
// All cosines of a list are computed once (pair_cosines.cpp), most of the time for 576 tokens of width 1024. A round
// then looks at a quarter of the list's length squared of them, by index: the order of the list changes in every round.
// Once half of the tokens have left, what is left of the cosines moves together, so that rounds do not read around
// them.
#include <algorithm>
#include <limits>
#include <numeric>
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
  return std::max(std::max(best[0], best[1]), std::max(best[2], best[3]));
}

// A list and the cosines among its tokens.
struct List {
  std::vector<int32_t> tokens;  // what each row and column of `cosine` stands for
  std::vector<int32_t> rows;    // those that are left, in the order of the list
  Buffer<float> cosine;         // (tokens, tokens)

  int64_t length() const { return static_cast<int64_t>(rows.size()); }
};

// The list of all `tokens`, of which `unit` (N, width) has the features at unit length.
List list_of(std::vector<int32_t> tokens, const float* unit, int64_t width) {
  const int64_t length = static_cast<int64_t>(tokens.size());
  Buffer<float> listed(length * width);
  for (int64_t i = 0; i < length; ++i) std::copy_n(unit + tokens[i] * width, width, listed.data() + i * width);
  List list{std::move(tokens), std::vector<int32_t>(length), Buffer<float>(length * length)};
  std::iota(list.rows.begin(), list.rows.end(), 0);
  pair_cosines(listed.data(), length, width, list.cosine.data());
  return list;
}

// The list with a matrix of its own length, in its order.
List compact(const List& from) {
  const int64_t length = from.length(), wide = static_cast<int64_t>(from.tokens.size());
  List to{std::vector<int32_t>(length), std::vector<int32_t>(length), Buffer<float>(length * length)};
  std::iota(to.rows.begin(), to.rows.end(), 0);
  each(ceil_div(length, kTask), [&](int64_t task) {
    for (int64_t i = task * kTask; i < std::min(length, (task + 1) * kTask); ++i) {
      const float* row = from.cosine.data() + from.rows[i] * wide;
      float* out = to.cosine.data() + i * length;
      for (int64_t j = 0; j < length; ++j) out[j] = row[from.rows[j]];
      to.tokens[i] = from.tokens[from.rows[i]];
    }
  });
  return to;
}

// One round: the list without `leave` tokens, in its new order.
void thin(int64_t leave, List& from) {
  const float* cosine = from.cosine.data();
  std::vector<int32_t>& list = from.rows;
  const int64_t tokens = static_cast<int64_t>(from.tokens.size());
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
  std::vector<int32_t> tokens = real_tokens(p);
  const Buffer<float> unit = unit_keys(p.features, p.tokens, p.width);
  const auto bad = [&](int32_t token) { return simd.any_nan(unit.data() + token * p.width, p.width); };
  if (std::any_of(tokens.begin(), tokens.end(), bad)) return Fault::kThinnedNotFinite;
  const int64_t length = static_cast<int64_t>(tokens.size());
  if (length < p.count) return Fault::kListTooShort;
  if (p.count == 0) return Fault::kNone;
  if (length == p.count) {
    std::copy(tokens.begin(), tokens.end(), p.left);
    return Fault::kNone;
  }
  List list = list_of(std::move(tokens), unit.data(), p.width);
  while (list.length() > p.count) {
    thin(std::min({p.step, list.length() - p.count, ceil_div(list.length(), 2)}), list);
    if (2 * list.length() <= static_cast<int64_t>(list.tokens.size())) list = compact(list);
  }
  for (int64_t i = 0; i < p.count; ++i) p.left[i] = list.tokens[list.rows[i]];
  return Fault::kNone;
}

}  // namespace ficoco
