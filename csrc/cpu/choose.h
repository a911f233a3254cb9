// Choices by score: ranks, and the targets of one source.
#pragma once
#include <bit>
#include <cstdint>

#include "cpu/kernels.h"

namespace ficoco {

// Rises as the score falls; equal scores rise with the index. The index is in the lower half.
inline uint64_t falling_rank(float score, int64_t index) {
  const float value = score + 0.f;  // -0 becomes 0
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rising = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(~rising) << 32 | static_cast<uint32_t>(index);
}

// The k targets of one source among `values` and their weights; targets are indices plus `first`.
Fault choose_row(const float* values, int64_t count, int64_t k, int64_t first, Alpha alpha, int64_t* targets,
                 float* weights);

}  // namespace ficoco
