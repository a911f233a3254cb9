// The largest scores of every segment, as many as it may keep.
//
// Tokens are sorted into their segments by counting, and each segment is parted at its count: O(N + G) steps and 8 N
// bytes of memory an image, bound by the parting.
#include <algorithm>
#include <vector>

#include "cpu/choose.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace ficoco {

Fault top_of_segments_image(const TopOfSegmentsParams& p) {
  if (simd.any_nan(p.scores, p.tokens)) return Fault::kSegmentScore;
  std::vector<int64_t> end(p.groups + 1, 0);  // of each segment's tokens; first their number, one further up
  for (int64_t i = 0; i < p.tokens; ++i) ++end[p.segments[i] + 1];
  int64_t all = 0;
  for (int64_t g = 0; g < p.groups; ++g) {
    if (p.counts[g] < 0 || p.counts[g] > end[g + 1]) return Fault::kSegmentCount;
    all += p.counts[g];
  }
  if (all != p.total) return Fault::kSegmentTotal;
  for (int64_t g = 0; g < p.groups; ++g) end[g + 1] += end[g];  // now end[g] is where segment g begins
  std::vector<uint64_t> ranks(p.tokens);
  for (int64_t i = 0; i < p.tokens; ++i) ranks[end[p.segments[i]]++] = falling_rank(p.scores[i], i);
  std::vector<char> stays(p.tokens, 0);
  for (int64_t g = 0; g < p.groups; ++g) {
    const auto first = ranks.begin() + (g == 0 ? 0 : end[g - 1]), last = ranks.begin() + end[g];
    const auto cut = first + p.counts[g];
    if (cut != last) std::nth_element(first, cut, last);
    for (auto one = first; one != cut; ++one) stays[*one & 0xffffffffu] = 1;
  }
  int64_t* out = p.kept;
  for (int64_t i = 0; i < p.tokens; ++i) {
    if (stays[i]) *out++ = i;
  }
  return Fault::kNone;
}

}  // namespace ficoco
