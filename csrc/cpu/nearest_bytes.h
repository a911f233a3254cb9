// The pairs of ToMe by products of bytes, for processors with AVX-512 VNNI.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FICOCO_VNNI 1

#include "cpu/buffer.h"
#include "cpu/nearest.h"

namespace ficoco {

class ByteScreen {
 public:
  static constexpr int64_t kTask = 48;  // even tokens of one task, which allocates scratch memory

  // Whether the processor can do it and it is worth while.
  static bool suits(int64_t width);

  // Rounds the odd tokens' keys to bytes; there is at least one. `metric`, (tokens, width), must outlive the screen.
  ByteScreen(const float* metric, int64_t width, const Side& even, const Side& odd);

  // best and nearest, as of `find_nearest`, of even tokens [begin, begin + count), at most kTask; best holds minus
  // infinity before. False: too many odd tokens are alike, and nothing was done.
  bool nearest(int64_t begin, int64_t count, float* best, int32_t* nearest) const;

 private:
  struct Pairs;

  const float* even_key(int64_t i) const { return metric_ + even_.token(i) * width_; }
  const float* odd_key(int64_t j) const { return metric_ + odd_.token(j) * width_; }

  // The keys in bytes, padded to whole groups, and how far below its largest sum of bytes an even token's nearest odd
  // one may be.
  void round_even(int64_t begin, int64_t count, int8_t* keys, float* slack) const;

  // The odd tokens that, judged by bytes, may be the nearest; those of even token begin + i end at ends[i]. False: too
  // many.
  bool screen(int64_t begin, int64_t count, Pairs& close, int64_t* ends) const;

  // The pairs' products, summed in any order.
  Buffer<float> dots_in_any_order(const Pairs& pairs) const;

  // The pairs' products summed as a panel does, one pair to a lane, against the best of their even tokens.
  void settle(const Pairs& pairs, float* best, int32_t* nearest) const;

  const float* metric_;
  int64_t width_;
  Side even_, odd_;
  int64_t words_, columns_;  // bytes of a key in fours, and odd tokens; both padded to whole vectors
  float scale_, error_;      // the value of one byte step, and the largest rounding error of a key
  Buffer<int32_t> packed_;   // word c of 16 odd tokens is contiguous
};

}  // namespace ficoco

#endif
