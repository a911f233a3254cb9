// What visual tokens receive from chosen rows of text: the sum over the rows, and the largest.
//
// The maximum is that of the mean over heads, so the heads meet before it. Rows are taken in blocks of 96: a task owns
// a head, takes 24 of the block's rows at a time against all keys and leaves what the visual tokens get of them in a
// buffer; then a task owns 64 visual tokens, adds up the heads in their order and folds the rows in theirs. For R
// chosen rows 2 R H T d FLOPs, without the softmax 2 R H n d: bound by arithmetic. Memory: 96 H n floats, no map of all
// tokens.
#include <algorithm>
#include <limits>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/kernels.h"
#include "cpu/masked_softmax.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "cpu/simd.h"

namespace ficoco {
namespace {

constexpr int64_t kRows = 4 * kPanel;  // of a block
constexpr int64_t kChunk = 64;         // visual tokens of one task

// A panel of rows of a block: the rows [begin, begin + count), in `width` columns of the block's buffer.
struct Panel {
  int64_t begin, count, width;
};

std::vector<Panel> panels_of(int64_t rows) {
  std::vector<Panel> panels;
  for (int64_t begin = 0; begin < rows; begin += kPanel) {
    const int64_t count = std::min(kPanel, rows - begin);
    panels.push_back({begin, count, panel_width(count)});
  }
  return panels;
}

// part[n * width + i]: what visual token n gets of row i of a panel, in head h.
void panel_part(const ReceivedFromParams& p, int64_t h, const float* keys, int64_t stride, const int64_t* text,
                const Panel& panel, float* part) {
  const int64_t width = panel.width;
  std::vector<FloatRows> readers(panel.count, FloatRows(p.query, p.width));
  const float* rows[kPanel];
  for (int64_t i = 0; i < panel.count; ++i) rows[i] = readers[i].read(h, text[panel.begin + i] - p.offset, 1);
  Buffer<float> packed(p.width * width);
  simd.pack_panel(rows, panel.count, p.width, width, p.probs ? 1.f : p.scale, packed.data());
  if (!p.probs) {
    std::fill_n(part, p.count * width, 0.f);
    simd.panel_dot(packed.data(), width, p.width, keys, stride, p.visual, p.count, part);
    return;
  }
  Buffer<float> scores(p.keys * width);
  float inverse[kPanel];
  std::fill_n(scores.data(), p.keys * width, 0.f);
  simd.panel_dot(packed.data(), width, p.width, keys, stride, nullptr, p.keys, scores.data());
  masked_softmax({p.key_mask, p.causal}, text + panel.begin, panel.count, p.keys, width, p.scale, scores.data(),
                 inverse);
  for (int64_t n = 0; n < p.count; ++n) {
    const float* from = scores.data() + p.visual[n] * width;
    for (int64_t i = 0; i < width; ++i) part[n * width + i] = from[i] * inverse[i];
  }
}

// Adds the rows of a block to `total` and `peak`.
void fold_block(const ReceivedFromParams& p, const std::vector<Panel>& panels, const Buffer<float>& parts,
                int64_t head_size) {
  const float heads = static_cast<float>(p.query.heads);
  each(ceil_div(p.count, kChunk), [&](int64_t chunk) {
    const int64_t begin = chunk * kChunk, count = std::min(kChunk, p.count - begin);
    Buffer<float> mean(count * kPanel);
    for (const Panel& panel : panels) {
      const int64_t at = panel.begin * p.count + begin * panel.width, size = count * panel.width;
      std::fill_n(mean.data(), size, 0.f);
      for (int64_t h = 0; h < p.query.heads; ++h) simd.add(mean.data(), parts.data() + h * head_size + at, size);
      simd.divide(mean.data(), heads, size);
      for (int64_t n = 0; n < count; ++n) {
        float total = p.total[begin + n], peak = p.peak[begin + n];
        for (int64_t i = 0; i < panel.count; ++i) {
          const float value = mean[n * panel.width + i];
          total += value;
          peak = value > peak || value != value ? value : peak;  // NaN stays
        }
        p.total[begin + n] = total;
        p.peak[begin + n] = peak;
      }
    }
  });
}

}  // namespace

void received_from_image(const ReceivedFromParams& p) {
  std::vector<int64_t> text;  // chosen alone
  for (int64_t r = 0; r < p.text_count; ++r) {
    if (p.chosen[r]) text.push_back(p.text[r]);
  }
  std::fill_n(p.total, p.count, 0.f);
  std::fill_n(p.peak, p.count, text.empty() ? 0.f : -std::numeric_limits<float>::infinity());
  if (text.empty() || p.count == 0) return;
  const int64_t rows = static_cast<int64_t>(text.size()), group = p.query.heads / p.key.heads;
  const int64_t head_size = std::min(kRows, ceil_div(rows, 8) * 8) * p.count;  // a panel's width is a multiple of 8
  Buffer<float> parts(p.query.heads * head_size);                              // [head][panel][token][row]
  for (int64_t begin = 0; begin < rows; begin += kRows) {
    const std::vector<Panel> panels = panels_of(std::min(kRows, rows - begin));
    each(p.query.heads, [&](int64_t h) {
      FloatRows reader(p.key, p.width);
      const float* keys = reader.read(h / group, 0, p.keys);
      for (const Panel& panel : panels) {
        panel_part(p, h, keys, reader.stride(), text.data() + begin, panel,
                   parts.data() + h * head_size + panel.begin * p.count);
      }
    });
    fold_block(p, panels, parts, head_size);
  }
}

}  // namespace ficoco
