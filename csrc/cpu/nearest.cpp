// For every even token of ToMe the odd token whose unit key is most like its own.
//
// Even tokens are packed into panels of at most 24, which run against blocks of 64 odd tokens. A block of similarities
// is compared with the best so far and then overwritten, so the (|A|, |B|) matrix never exists. On a processor that
// multiplies bytes, products of bytes first select the odd tokens worth a product of floats (nearest_bytes.cpp).
//
// 2 |A| |B| d FLOPs an image: bound by arithmetic.
#include "cpu/nearest.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "cpu/nearest_bytes.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "cpu/simd.h"

namespace ficoco {
namespace {

constexpr int64_t kBlock = 64;  // odd tokens whose similarities are held at once: 6 KiB

// Even tokens [begin, begin + count) of a panel against every odd one.
void panel_nearest(const float* metric, int64_t width, const Side& even, const Side& odd, int64_t begin, int64_t count,
                   float* best, int32_t* nearest) {
  const int64_t w = panel_width(count);
  const float* rows[kPanel];
  for (int64_t i = 0; i < count; ++i) rows[i] = metric + even.token(begin + i) * width;
  std::vector<float> packed(width * w), scores(kBlock * w);
  simd.pack_panel(rows, count, width, w, 1.f, packed.data());
  for (int64_t j = 0; j < odd.count; j += kBlock) {
    const int64_t block = std::min(kBlock, odd.count - j);
    std::fill_n(scores.begin(), block * w, 0.f);
    simd.panel_dot(packed.data(), w, width, metric + odd.token(j) * width, 2 * width, nullptr, block, scores.data());
    simd.max_columns(scores.data(), block, w, static_cast<int32_t>(j), best + begin, nearest + begin);
  }
}

}  // namespace

void find_nearest(const float* metric, int64_t width, const Side& even, const Side& odd, std::vector<float>& best,
                  std::vector<int32_t>& nearest) {
  best.assign(ceil_div(even.count, kPanel) * kPanel, -std::numeric_limits<float>::infinity());
  nearest.assign(best.size(), 0);
  const auto panels = [&](int64_t begin, int64_t count) {
    each(ceil_div(count, kPanel), [&](int64_t p) {
      const int64_t first = begin + p * kPanel, here = std::min(kPanel, begin + count - first);
      panel_nearest(metric, width, even, odd, first, here, best.data(), nearest.data());
    });
  };
#ifdef FICOCO_VNNI
  if (ByteScreen::suits(width)) {
    const ByteScreen screen(metric, width, even, odd);
    return each(ceil_div(even.count, ByteScreen::kTask), [&](int64_t task) {
      const int64_t begin = task * ByteScreen::kTask, count = std::min(ByteScreen::kTask, even.count - begin);
      if (!screen.nearest(begin, count, best.data(), nearest.data())) panels(begin, count);
    });
  }
#endif
  panels(0, even.count);
}

}  // namespace ficoco
