// One layer's attention and tokens for a whole reduction: shapes, and the parameters of every launcher over given
// memory.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cuda/launch.h"

namespace ficoco {

struct Layer {
  int64_t batch = 1, tokens = 577, heads = 16, width = 64, r = 42;
  int64_t first = 1;  // 1: token 0 is a class token
  int64_t grid_height = 24, grid_width = 24;
  Dtype dtype = Dtype::kBFloat16;

  int64_t channels() const { return heads * width; }
  int64_t patches() const { return tokens - first; }
  int64_t kept() const { return tokens - r; }
  // The adaptive number of targets at the method's quantile: see ficoco_ext.stages.adaptive_targets.
  int64_t targets() const {
    const int64_t candidates = kept() - first;
    return candidates - static_cast<int64_t>(std::ceil(0.998 * static_cast<double>(candidates - 1) - 1e-9));
  }
  int64_t inputs() const { return batch * tokens * channels(); }  // elements of tokens, of query and of key
  bool valid() const {
    return batch > 0 && heads > 0 && width > 0 && patches() > 0 && r >= 0 && r < patches() &&
           grid_height * grid_width == patches();
  }
};

// The most nearly square grid of that many patches, with even sides if there is one.
inline void choose_grid(Layer& layer) {
  const int64_t patches = layer.patches();
  layer.grid_height = 1;
  for (const int64_t step : {int64_t{1}, int64_t{2}}) {
    for (int64_t side = step; side * side <= patches; side += step) {
      const int64_t other = patches / side;
      if (patches % side == 0 && (step == 1 || other % 2 == 0)) layer.grid_height = side;
    }
  }
  layer.grid_width = patches / std::max<int64_t>(layer.grid_height, 1);
}

struct Memory {  // all of it where the kernels run; inputs are (B, N, C), heads side by side
  const void *tokens, *query, *key;
  float *class_attention, *patch_attention, *redundancy, *weights, *out_size;
  int64_t *sources, *kept, *targets, *source_map;
  void* out;
};

inline ReduceParams describe(const Layer& l, const Memory& m) {
  const auto rows = [&](const void* data) {
    return Rows{data, l.dtype, l.heads, l.tokens * l.channels(), l.width, l.channels()};
  };
  ReduceParams p{};
  p.stats.query = rows(m.query);
  p.stats.key = rows(m.key);
  p.stats.batch = l.batch;
  p.stats.tokens = l.tokens;
  p.stats.width = l.width;
  p.stats.first = l.first;
  p.stats.scale = 1.0f / std::sqrt(static_cast<float>(l.width));
  p.stats.patches = true;
  p.stats.class_attention = m.class_attention;
  p.stats.patch_attention = m.patch_attention;

  p.filter.patch_attention = m.patch_attention;
  p.filter.class_attention = m.class_attention;
  p.filter.batch = l.batch;
  p.filter.patches = l.patches();
  p.filter.r = l.r;
  p.filter.first = l.first;
  p.filter.lam = 0.65f;
  p.filter.penalty = 2.0f;
  p.filter.normalize = true;
  p.filter.window = 2;
  p.filter.grid_height = l.grid_height;
  p.filter.grid_width = l.grid_width;
  p.filter.redundancy = m.redundancy;
  p.filter.sources = m.sources;
  p.filter.kept = m.kept;

  p.correlate.by = Correlation::kLogits;
  p.correlate.query = p.stats.query;
  p.correlate.key = p.stats.key;
  p.correlate.sources = m.sources;
  p.correlate.kept = m.kept;
  p.correlate.batch = l.batch;
  p.correlate.tokens = l.tokens;
  p.correlate.width = l.width;
  p.correlate.r = l.r;
  p.correlate.kept_count = l.kept();
  p.correlate.k = l.targets();
  p.correlate.first = l.first;
  p.correlate.scale = p.stats.scale;
  p.correlate.alpha = Alpha::kSoftmax;
  p.correlate.targets = m.targets;
  p.correlate.weights = m.weights;

  p.compress.tokens = Rows{m.tokens, l.dtype, 1, l.tokens * l.channels(), 0, l.channels()};
  p.compress.sources = m.sources;
  p.compress.kept = m.kept;
  p.compress.targets = m.targets;
  p.compress.weights = m.weights;
  p.compress.batch = l.batch;
  p.compress.count = l.tokens;
  p.compress.channels = l.channels();
  p.compress.r = l.r;
  p.compress.kept_count = l.kept();
  p.compress.k = l.targets();
  p.compress.out = m.out;
  p.compress.out_size = m.out_size;
  p.compress.source_map = m.source_map;
  return p;
}

}  // namespace ficoco
