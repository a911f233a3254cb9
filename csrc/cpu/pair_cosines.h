// Cosines of all pairs of tokens.
#pragma once
#include <cstdint>

namespace ficoco {

// (tokens, tokens) of rows `unit` (tokens, width) at unit length; symmetric. That of a token with itself is 1 if it is
// above kItself.
void pair_cosines(const float* unit, int64_t tokens, int64_t width, float* cosine);

}  // namespace ficoco
