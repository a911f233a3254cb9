// The metric of ToMe: the mean over heads of a token's keys, at unit length. Keys are read once: bound by memory.
#include <cmath>

#include "cpu/kernels.h"

namespace ficoco {
namespace {

constexpr int64_t kChunk = 32;  // tokens of one task; their sums stay in the first-level cache while heads go by

}  // namespace

std::vector<float> unit_keys(const Rows& key, int64_t tokens, int64_t width) {
  std::vector<float> metric(tokens * width, 0.f);
  each(ceil_div(tokens, kChunk), [&](int64_t chunk) {
    const int64_t begin = chunk * kChunk, count = std::min(kChunk, tokens - begin);
    FloatRows reader(key, width);
    float* out = metric.data() + begin * width;
    if (key.dtype == Dtype::kFloat && key.stride_n != width) {  // heads side by side: a token is one stretch of memory
      for (int64_t i = 0; i < count; ++i) {
        simd.sum_rows(reader.read(0, begin + i, 1), key.stride_h, key.heads, width, out + i * width);
      }
    } else {
      for (int64_t h = 0; h < key.heads; ++h) simd.add(out, reader.read(h, begin, count), count * width);
    }
    for (int64_t i = 0; i < count; ++i) {
      float* row = out + i * width;
      simd.divide(row, static_cast<float>(key.heads), width);
      const double length = std::sqrt(simd.sum_squares(row, width));
      simd.divide(row, static_cast<float>(std::max(length, 1e-12)), width);
    }
  });
  return metric;
}

}  // namespace ficoco
