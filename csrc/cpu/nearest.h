// The nearest odd token of every even token of ToMe, before any pair is chosen.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

namespace ficoco {

// Every other token from `first` on.
struct Side {
  int64_t first, count;
  Side(int64_t first, int64_t tokens) : first(first), count(std::max<int64_t>((tokens - first + 1) / 2, 0)) {}
  int64_t token(int64_t i) const { return first + 2 * i; }
};

// best[i] is the largest cosine of even token i with an odd one, nearest[i] the first odd token that has it. Both may
// be longer than there are even tokens. The metric, (tokens, width) unit keys, must be finite, and neither side empty.
void find_nearest(const float* metric, int64_t width, const Side& even, const Side& odd, std::vector<float>& best,
                  std::vector<int32_t>& nearest);

}  // namespace ficoco
