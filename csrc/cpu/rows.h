// Rows of keys, queries and maps as floats.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/simd.h"
#include "params.h"

namespace ficoco {

// Head-mean keys (tokens, width) at unit length, those shorter than 1e-12 divided by 1e-12.
Buffer<float> unit_keys(const Rows& key, int64_t tokens, int64_t width);

// Rows [begin, begin + count) of one head of one image as floats: the tensor itself if it holds floats, else a
// converted copy.
class FloatRows {
 public:
  FloatRows(const Rows& rows, int64_t width) : rows_(rows), width_(width) {}

  const float* read(int64_t h, int64_t begin, int64_t count) {
    const int64_t offset = h * rows_.stride_h + begin * rows_.stride_n;
    const char* base = static_cast<const char*>(rows_.data) + offset * static_cast<int64_t>(size_of(rows_.dtype));
    if (rows_.dtype == Dtype::kFloat) return reinterpret_cast<const float*>(base);
    scratch_.resize(std::max<size_t>(scratch_.size(), count * width_));
    for (int64_t i = 0; i < count; ++i) {
      load(base + i * rows_.stride_n * size_of(rows_.dtype), rows_.dtype, scratch_.data() + i * width_, width_);
    }
    return scratch_.data();
  }

  // Elements between two rows that `read` returned.
  int64_t stride() const { return rows_.dtype == Dtype::kFloat ? rows_.stride_n : width_; }

 private:
  const Rows& rows_;
  int64_t width_;
  std::vector<float> scratch_;
};

// Panel widths that cover r rows: 24s, then 8, 16 or 24 for the rest.
inline int64_t panel_width(int64_t rows_left) { return std::min<int64_t>(kPanel, ceil_div(rows_left, 8) * 8); }

}  // namespace ficoco
