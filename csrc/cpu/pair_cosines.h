// Cosines of all pairs of tokens.
#pragma once
#include <cstdint>

namespace ficoco {

// (tokens, tokens) of rows `unit` (tokens, width) at unit length; symmetric. One above kAlike is 1.
void pair_cosines(const float* unit, int64_t tokens, int64_t width, float* cosine);

}  // namespace ficoco
