// For each source the k kept patches it correlates with most, and weights that sum to 1.
//
// Sources are packed into panels of at most 24. A task owns one panel and a block of 64 kept patches (probabilities:
// one panel, all keys).
//
// 2 r M H d FLOPs an image: bound by arithmetic. The correlations (M, r) are written once and read once.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/choose.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "cpu/simd.h"

namespace ficoco {
namespace {

constexpr int64_t kBlock = 64;           // kept patches of one task
constexpr int64_t kInsertionLimit = 16;  // more targets than this are chosen by partial sort

struct Panels {  // how r sources are cut: panel i holds sources [24 i, 24 i + rows(i))
  int64_t r;
  int64_t count() const { return ceil_div(r, kPanel); }
  int64_t width(int64_t i) const { return panel_width(r - i * kPanel); }
  int64_t rows(int64_t i) const { return std::min(kPanel, r - i * kPanel); }
};

int64_t candidates_of(const CorrelateParams& p) { return p.kept_count - p.first; }
const int64_t* candidate_index(const CorrelateParams& p) { return p.kept + p.first; }

// Weights of the k chosen correlations, falling.
Fault weigh(const float* chosen, int64_t k, Alpha alpha, float* weights) {
  float total = 0.f;
  Fault fault = std::isfinite(chosen[0]) ? Fault::kNone : Fault::kCorrelationNotFinite;
  for (int64_t t = 0; t < k; ++t) {
    weights[t] = alpha == Alpha::kSoftmax ? std::exp(chosen[t] - chosen[0]) : chosen[t];
    if (alpha == Alpha::kRatio && chosen[t] < 0.f) fault = std::max(fault, Fault::kNegativeRatio);
    total += weights[t];
  }
  const bool even = alpha == Alpha::kAverage || !(total > 0.f);
  for (int64_t t = 0; t < k; ++t) weights[t] = even ? 1.f / static_cast<float>(k) : weights[t] / total;
  return fault;
}

// The k largest of `values`, falling, the lowest index first among equals.
void sort_top(const float* values, int64_t count, int64_t k, std::vector<int32_t>& order) {
  order.resize(count);
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + k, order.end(),
                    [&](int32_t x, int32_t y) { return values[x] > values[y] || (values[x] == values[y] && x < y); });
}

// Picks the targets of one panel from scores [candidates][width].
Fault choose(const CorrelateParams& p, int64_t panel, const float* scores, int64_t width) {
  const Panels panels{p.r};
  const int64_t candidates = candidates_of(p), k = p.k;
  if (simd.any_nan(scores, candidates * width)) return Fault::kCorrelationNotFinite;
  const bool inserted = k <= kInsertionLimit;
  std::vector<float> best(inserted ? k * width : 0), falling(k), column(inserted ? 0 : candidates);
  std::vector<int32_t> index(inserted ? k * width : 0), order;
  if (inserted) simd.top_columns(scores, candidates, width, k, best.data(), index.data());
  Fault fault = Fault::kNone;
  for (int64_t i = 0; i < panels.rows(panel); ++i) {
    if (!inserted) {
      for (int64_t j = 0; j < candidates; ++j) column[j] = scores[j * width + i];
      sort_top(column.data(), candidates, k, order);
    }
    const int64_t at = (panel * kPanel + i) * k;
    for (int64_t t = 0; t < k; ++t) {
      const int32_t j = inserted ? index[t * width + i] : order[t];
      p.targets[at + t] = j + p.first;
      falling[t] = scores[j * width + i];
    }
    fault = std::max(fault, weigh(falling.data(), k, p.alpha, p.weights + at));
  }
  return fault;
}

// out[panel][head][d][width]: the sources' queries, times `factor`.
std::vector<float> pack_sources(const CorrelateParams& p, float factor) {
  const Panels panels{p.r};
  const int64_t heads = p.query.heads;
  std::vector<float> out(panels.count() * heads * p.width * kPanel);
  each(panels.count() * heads, [&](int64_t task) {
    const int64_t panel = task / heads, h = task % heads, count = panels.rows(panel);
    std::vector<FloatRows> readers(count, FloatRows(p.query, p.width));
    const float* rows[kPanel];
    for (int64_t i = 0; i < count; ++i) rows[i] = readers[i].read(h, p.sources[panel * kPanel + i], 1);
    simd.pack_panel(rows, count, p.width, panels.width(panel), factor, out.data() + task * p.width * kPanel);
  });
  return out;
}

// Rows index[0..count) of one head: floats in place with their indices, or a converted copy without.
struct KeptRows {
  const float* data;
  int64_t stride;
  const int64_t* index;
};

KeptRows read_kept(const CorrelateParams& p, FloatRows& reader, std::vector<float>& scratch, int64_t h,
                   const int64_t* index, int64_t count) {
  if (p.key.dtype == Dtype::kFloat) return {reader.read(h, 0, 1), p.key.stride_n, index};
  scratch.resize(kBlock * p.width);
  for (int64_t j = 0; j < count; ++j) std::copy_n(reader.read(h, index[j], 1), p.width, scratch.data() + j * p.width);
  return {scratch.data(), p.width, nullptr};
}

Fault correlate_logits(const CorrelateParams& p) {
  const Panels panels{p.r};
  const int64_t candidates = candidates_of(p), blocks = ceil_div(candidates, kBlock);
  const int64_t heads = p.query.heads, group = heads / p.key.heads;
  const std::vector<float> packed = pack_sources(p, p.scale / static_cast<float>(heads));
  std::vector<float> scores(panels.count() * candidates * kPanel);  // [panel][candidates][width]
  each(panels.count() * blocks, [&](int64_t task) {
    const int64_t panel = task / blocks, begin = task % blocks * kBlock, w = panels.width(panel);
    const int64_t count = std::min(kBlock, candidates - begin);
    float* out = scores.data() + panel * candidates * kPanel + begin * w;
    std::fill_n(out, count * w, 0.f);
    FloatRows reader(p.key, p.width);
    std::vector<float> scratch;
    for (int64_t h = 0; h < heads; ++h) {
      const KeptRows rows = read_kept(p, reader, scratch, h / group, candidate_index(p) + begin, count);
      const float* sources = packed.data() + (panel * heads + h) * p.width * kPanel;
      simd.panel_dot(sources, w, p.width, rows.data, rows.stride, rows.index, count, out);
    }
  });
  std::vector<Fault> faults(panels.count());
  each(panels.count(), [&](int64_t panel) {
    faults[panel] = choose(p, panel, scores.data() + panel * candidates * kPanel, panels.width(panel));
  });
  return worst(faults);
}

// Probabilities need the softmax over all N keys, head by head; a task is one panel.
Fault correlate_probabilities(const CorrelateParams& p) {
  const Panels panels{p.r};
  const int64_t n = p.tokens, heads = p.query.heads, group = heads / p.key.heads;
  const std::vector<float> packed = pack_sources(p, 1.f);
  std::vector<Fault> faults(panels.count());
  each(panels.count(), [&](int64_t panel) {
    const int64_t w = panels.width(panel);
    FloatRows reader(p.key, p.width);
    std::vector<float> scores(n * w), mean(n * w, 0.f), sums(w);
    for (int64_t h = 0; h < heads; ++h) {
      std::fill(scores.begin(), scores.end(), 0.f);
      const float* k = reader.read(h / group, 0, n);
      simd.panel_dot(packed.data() + (panel * heads + h) * p.width * kPanel, w, p.width, k, reader.stride(), nullptr, n,
                     scores.data());
      simd.exp_columns(scores.data(), n, w, p.scale, 0, sums.data());
      for (float& x : sums) x = 1.f / (x * static_cast<float>(heads));
      simd.add_scaled_columns(mean.data(), scores.data(), n, w, sums.data());
    }
    const int64_t* index = candidate_index(p);
    for (int64_t j = 0; j < candidates_of(p); ++j) std::copy_n(mean.data() + index[j] * w, w, scores.data() + j * w);
    faults[panel] = choose(p, panel, scores.data(), w);
  });
  return worst(faults);
}

Fault correlate_keys(const CorrelateParams& p) {
  const Buffer<float> metric = unit_keys(p.key, p.tokens, p.width);
  CorrelateParams cosine = p;
  cosine.query = cosine.key = {metric.data(), Dtype::kFloat, 1, p.tokens * p.width, 0, p.width};
  cosine.scale = 1.f;
  return correlate_logits(cosine);
}

Fault correlate_map(const CorrelateParams& p) {
  const int64_t n = p.tokens, candidates = candidates_of(p), k = p.k;
  std::vector<Fault> faults(p.r);
  each(p.r, [&](int64_t source) {
    FloatRows reader(p.attn, n);
    std::vector<float> row(n, 0.f), column(candidates);
    for (int64_t h = 0; h < p.attn.heads; ++h) simd.add(row.data(), reader.read(h, p.sources[source], 1), n);
    simd.divide(row.data(), static_cast<float>(p.attn.heads), n);
    const int64_t* index = candidate_index(p);
    for (int64_t j = 0; j < candidates; ++j) column[j] = row[index[j]];
    faults[source] =
        choose_row(column.data(), candidates, k, p.first, p.alpha, p.targets + source * k, p.weights + source * k);
  });
  return worst(faults);
}

}  // namespace

Fault choose_row(const float* values, int64_t count, int64_t k, int64_t first, Alpha alpha, int64_t* targets,
                 float* weights) {
  if (simd.any_nan(values, count)) return Fault::kCorrelationNotFinite;
  std::vector<float> falling(k);
  std::vector<int32_t> order;
  sort_top(values, count, k, order);
  for (int64_t t = 0; t < k; ++t) {
    targets[t] = order[t] + first;
    falling[t] = values[order[t]];
  }
  return weigh(falling.data(), k, alpha, weights);
}

Fault correlate_image(const CorrelateParams& p) {
  if (p.r * p.k == 0) return Fault::kNone;
  switch (p.by) {
    case Correlation::kLogits: return correlate_logits(p);
    case Correlation::kProbs: return correlate_probabilities(p);
    case Correlation::kKey: return correlate_keys(p);
    case Correlation::kMap: return correlate_map(p);
  }
  return Fault::kNone;
}

}  // namespace ficoco
