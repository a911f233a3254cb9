// Cosines of all pairs of tokens, each pair once: N^2 D FLOPs, bound by arithmetic.
#include "cpu/pair_cosines.h"

#include <algorithm>

#include "cpu/buffer.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "cpu/simd.h"

namespace ficoco {
namespace {

constexpr int64_t kBlock = 64;  // tokens against a panel at once

// Cosines of tokens [begin, begin + count), a panel, with those from `begin` on, both ways.
void panel_cosines(const float* unit, int64_t tokens, int64_t width, int64_t begin, int64_t count, float* cosine) {
  const int64_t w = panel_width(count);
  const float* rows[kPanel];
  for (int64_t i = 0; i < count; ++i) rows[i] = unit + (begin + i) * width;
  Buffer<float> packed(width * w), scores(kBlock * w);
  simd.pack_panel(rows, count, width, w, 1.f, packed.data());
  for (int64_t j = begin; j < tokens; j += kBlock) {
    const int64_t block = std::min(kBlock, tokens - j);
    std::fill_n(scores.data(), block * w, 0.f);
    simd.panel_dot(packed.data(), w, width, unit + j * width, width, nullptr, block, scores.data());
    for (int64_t s = 0; s < block * w; ++s) scores[s] = scores[s] > kAlike ? 1.f : scores[s];
    for (int64_t i = 0; i < count; ++i) {
      float* row = cosine + (begin + i) * tokens + j;
      for (int64_t t = 0; t < block; ++t) row[t] = scores[t * w + i];
    }
    for (int64_t t = 0; t < block; ++t) std::copy_n(scores.data() + t * w, count, cosine + (j + t) * tokens + begin);
  }
}

}  // namespace

// A task has the longest panel left and the shortest.
void pair_cosines(const float* unit, int64_t tokens, int64_t width, float* cosine) {
  const int64_t panels = ceil_div(tokens, kPanel);
  const auto panel = [&](int64_t i) {
    panel_cosines(unit, tokens, width, i * kPanel, std::min(kPanel, tokens - i * kPanel), cosine);
  };
  each(ceil_div(panels, 2), [&](int64_t i) {
    panel(i);
    if (panels - 1 - i != i) panel(panels - 1 - i);
  });
}

}  // namespace ficoco
