// The CPU kernels, one per operator, and what they share. Work is cut by shape alone, never by the number of threads,
// so results do not depend on it.
#pragma once
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "cpu/simd.h"
#include "params.h"

namespace ficoco {

void attention_stats_cpu(const StatsParams& p);
void attention_stats_map_cpu(const MapStatsParams& p);

// Returns false if a score is NaN or infinite; nothing but `redundancy` is written then.
bool filter_cpu(const FilterParams& p);

// What is wrong with the correlations that were chosen, worst last.
enum class Fault { kNone, kNegativeRatio, kNotFinite };

Fault correlate_cpu(const Links& links, const Rows& query, const Rows& key, int64_t width, float scale, bool probs);
Fault correlate_key_cpu(const Links& links, const Rows& key, int64_t width);
Fault correlate_map_cpu(const Links& links, const Rows& attn);

void compress_cpu(const CompressParams& p);

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Runs task(i) for i in [0, count), each on some thread.
template <class Task>
void each(int64_t count, const Task& task) {
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) task(i);
  });
}

inline size_t size_of(Dtype dtype) { return dtype == Dtype::kFloat ? 4 : 2; }

// Rows [begin, begin + count) of one head as floats: the tensor itself if it holds floats, else a converted copy.
class FloatRows {
 public:
  FloatRows(const Rows& rows, int64_t width) : rows_(rows), width_(width) {}

  const float* read(int64_t b, int64_t h, int64_t begin, int64_t count) {
    const int64_t offset = b * rows_.stride_b + h * rows_.stride_h + begin * rows_.stride_n;
    const char* base = static_cast<const char*>(rows_.data) + offset * static_cast<int64_t>(size_of(rows_.dtype));
    if (rows_.dtype == Dtype::kFloat) return reinterpret_cast<const float*>(base);
    scratch_.resize(std::max<size_t>(scratch_.size(), count * width_));
    for (int64_t i = 0; i < count; ++i) {
      load(base + i * rows_.stride_n * size_of(rows_.dtype), rows_.dtype, scratch_.data() + i * width_, width_);
    }
    return scratch_.data();
  }

  // Elements from one row that `read` returned to the next.
  int64_t stride() const { return rows_.dtype == Dtype::kFloat ? rows_.stride_n : width_; }

 private:
  const Rows& rows_;
  int64_t width_;
  std::vector<float> scratch_;
};

// Packs `count` rows of `width` floats as columns of panel [width][columns]; columns from `count` on become zero.
inline void pack_column(const float* row, int64_t width, int64_t columns, int64_t column, float* panel) {
  for (int64_t c = 0; c < width; ++c) panel[c * columns + column] = row[c];
}

// Panel widths that cover r rows: 24s, then 8, 16 or 24 for the rest.
inline int64_t panel_width(int64_t rows_left) { return std::min<int64_t>(kPanel, ceil_div(rows_left, 8) * 8); }

}  // namespace ficoco
