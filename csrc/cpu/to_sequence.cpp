// A selection among the visual tokens of a sequence, as positions in the sequence.
//
// One walk over the visual tokens, which also checks the lists, then one over the columns. No FLOPs, O(T) memory.
#include "cpu/kernels.h"

namespace ficoco {

Fault to_sequence_image(const ToSequenceParams& p) {
  int64_t leaving = 0, staying = 0, last = -1;
  for (int64_t i = 0; i < p.count; ++i) {
    const int64_t column = p.visual[i];
    if (column <= last || column >= p.tokens) return Fault::kNotAscending;
    last = column;
    if (leaving < p.r && p.sources[leaving] == i) {
      p.source_positions[leaving++] = column;
    } else if (staying < p.count - p.r && p.kept[staying] == i) {
      p.visual_positions[staying++] = column - leaving;
    } else {
      return Fault::kNoPartition;
    }
  }
  for (int64_t column = 0, gone = 0; column < p.tokens; ++column) {
    if (gone < p.r && p.source_positions[gone] == column) {
      ++gone;
    } else {
      p.kept_positions[column - gone] = column;
    }
  }
  for (int64_t e = 0; e < p.r * p.k; ++e) p.target_indices[e] = p.visual_positions[p.targets[e]];
  return Fault::kNone;
}

}  // namespace ficoco
