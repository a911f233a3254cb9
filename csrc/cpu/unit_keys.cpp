// The metric of ToMe: the mean over heads of a token's keys, at unit length. A task owns 64 tokens.
//
// Keys are read once: bound by memory.
#include <algorithm>

#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "cpu/simd.h"

namespace ficoco {
namespace {

constexpr int64_t kChunk = 64;  // tokens of one task; their sums stay in the first-level cache while heads go by
constexpr double kTiny = 1e-12;

// out[i] = the sum over heads of the keys of token begin + i.
void add_heads(const Rows& key, int64_t begin, int64_t count, int64_t width, float* out) {
  std::fill_n(out, count * width, 0.f);
  if (key.stride_h == width) {  // heads side by side: a token is one stretch of memory
    const Rows wide{key.data, key.dtype, 1, 0, 0, key.stride_n};
    FloatRows reader(wide, key.heads * width);
    for (int64_t i = 0; i < count; ++i) {
      simd.sum_rows(reader.read(0, begin + i, 1), width, key.heads, width, out + i * width);
    }
    return;
  }
  FloatRows reader(key, width);
  for (int64_t h = 0; h < key.heads; ++h) {
    const float* x = reader.read(h, begin, count);
    if (reader.stride() == width) {
      simd.add(out, x, count * width);
    } else {
      for (int64_t i = 0; i < count; ++i) simd.add(out + i * width, x + i * reader.stride(), width);
    }
  }
}

}  // namespace

Buffer<float> unit_keys(const Rows& key, int64_t tokens, int64_t width) {
  const double heads = static_cast<double>(key.heads);
  Buffer<float> metric(tokens * width);
  each(ceil_div(tokens, kChunk), [&](int64_t chunk) {
    const int64_t begin = chunk * kChunk, count = std::min(kChunk, tokens - begin);
    float* out = metric.data() + begin * width;
    // The number of heads cancels, except against the bound on the mean's length.
    if (key.heads == 1) {
      FloatRows reader(key, width);
      const float* x = reader.read(0, begin, count);
      simd.unit_rows(x, reader.stride(), count, width, kTiny, out);
    } else {
      add_heads(key, begin, count, width, out);
      simd.unit_rows(out, width, count, width, heads * kTiny, out);
    }
  });
  return metric;
}

}  // namespace ficoco
