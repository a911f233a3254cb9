// The CPU kernels, one per operator, and what they share. Each works on one image at a time: `image(params, b)` is the
// params of one, with batch 1. Work is cut by shape alone, never by the number of threads, so results do not depend on
// it.
#pragma once
#include <ATen/Parallel.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <functional>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/simd.h"
#include "params.h"

namespace ficoco {

// What is wrong with the values that were read, worst last. Where a score or a correlation is not finite, nothing that
// depends on it is written.
enum class Fault {
  kNone,
  kNegativeRatio,
  kCorrelationNotFinite,
  kScoreNotFinite,
  kKeyNotFinite,
  kNoPartition,
  kNotAscending
};

// One image each: `batch` is 1 and pointers are the image's own.
void attention_stats_image(const StatsParams& p);
void attention_stats_image(const MapStatsParams& p);
Fault filter_image(const FilterParams& p);
Fault correlate_image(const CorrelateParams& p);
Fault match_image(const MatchParams& p);
void token_attention_image(const TokenParams& p);
Fault correlate_tokens_image(const TokenLinksParams& p);
Fault to_sequence_image(const SequenceParams& p);
void compress_image(const CompressParams& p);

// Head-mean keys (tokens, width) at unit length, those below 1e-12 divided by that.
Buffer<float> unit_keys(const Rows& key, int64_t tokens, int64_t width);

// Rises as the score falls; equal scores rise with the index. The index is in the lower half.
inline uint64_t falling_rank(float score, int64_t index) {
  const float value = score + 0.f;  // -0 becomes 0
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rising = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(~rising) << 32 | static_cast<uint32_t>(index);
}

// The k targets of one source among `values` and their weights; targets are places plus `first`.
Fault choose_row(const float* values, int64_t count, int64_t k, int64_t first, Alpha alpha, int64_t* targets,
                 float* weights);

// Runs task(i) for i in [0, count), each on some thread.
template <class Task>
void each(int64_t count, const Task& task) {
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) task(i);
  });
}

// Runs task(b) for every image. With enough of them each thread takes whole images, which stay in its cache from one
// pass to the next (a nested `each` then runs in that thread); else all threads share one image after another.
template <class Task>
void each_image(int64_t batch, const Task& task) {
  const int64_t threads = at::get_num_threads();
  if (batch >= threads && (batch % threads == 0 || batch >= 4 * threads)) {
    each(batch, task);
  } else {
    for (int64_t b = 0; b < batch; ++b) task(b);
  }
}

inline Fault worst(const std::vector<Fault>& faults) {
  return faults.empty() ? Fault::kNone : *std::max_element(faults.begin(), faults.end());
}

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

  // Elements from one row that `read` returned to the next.
  int64_t stride() const { return rows_.dtype == Dtype::kFloat ? rows_.stride_n : width_; }

 private:
  const Rows& rows_;
  int64_t width_;
  std::vector<float> scratch_;
};

// Panel widths that cover r rows: 24s, then 8, 16 or 24 for the rest.
inline int64_t panel_width(int64_t rows_left) { return std::min<int64_t>(kPanel, ceil_div(rows_left, 8) * 8); }

}  // namespace ficoco
