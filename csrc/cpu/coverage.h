// The loop that greedy_select and greedy_cover share.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/buffer.h"

namespace ficoco {

// Candidates that each cover every one of some things by an amount.
struct Coverage {
  const float* rows;  // row j: by how much candidate j covers each thing
  int64_t stride;     // floats from one row to the next
  int64_t candidates, things, count;
  const float* saliency;  // factor on a candidate's gain, or nullptr for 1
  int64_t* order;         // (count) in the order of picking
  float* gains;           // (count)
};

// Picks `count` of the candidates that are `free`, one by one, each the one that adds most to `covered`, the lowest of
// equal ones. `covered` is what each thing is covered by before the first pick: infinity if it needs no cover.
void pick_by_coverage(const Coverage& c, const std::vector<char>& free, Buffer<float>& covered);

}  // namespace ficoco
