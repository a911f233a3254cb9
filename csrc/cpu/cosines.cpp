// Cosines of the features of tokens with other vectors.
//
// A panel of up to 24 tokens is packed once and meets all things, 64 at a time: 2 N R D FLOPs an image, bound by
// arithmetic. The sum of a pair runs over the channels in order wherever the pair lies, so equal vectors have equal
// cosines bit for bit.
#include <algorithm>

#include "cpu/buffer.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "cpu/simd.h"

namespace ficoco {

void cosines_image(const CosinesParams& p) {
  constexpr int64_t kBlock = 64;
  const Buffer<float> tokens = unit_keys(p.features, p.tokens, p.width);
  const Buffer<float> things = unit_keys(p.things, p.thing_count, p.width);
  each(ceil_div(p.tokens, kPanel), [&](int64_t panel) {
    const int64_t begin = panel * kPanel, count = std::min(kPanel, p.tokens - begin), w = panel_width(count);
    const float* rows[kPanel];
    for (int64_t i = 0; i < count; ++i) rows[i] = tokens.data() + (begin + i) * p.width;
    Buffer<float> packed(p.width * w), scores(kBlock * w);
    simd.pack_panel(rows, count, p.width, w, 1.f, packed.data());
    for (int64_t t = 0; t < p.thing_count; t += kBlock) {
      const int64_t block = std::min(kBlock, p.thing_count - t);
      std::fill_n(scores.data(), block * w, 0.f);
      simd.panel_dot(packed.data(), w, p.width, things.data() + t * p.width, p.width, nullptr, block, scores.data());
      for (int64_t i = 0; i < count; ++i) {
        float* out = p.cosines + (begin + i) * p.thing_count + t;
        for (int64_t s = 0; s < block; ++s) out[s] = scores[s * w + i];
      }
    }
  });
}

}  // namespace ficoco
