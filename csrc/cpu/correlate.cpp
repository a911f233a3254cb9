// For each source the k kept patches it correlates with most, and weights that sum to 1.
//
// Sources are packed into panels of at most 24; a task takes one panel of one image against a block of kept patches,
// so the correlations (B, M, r) are written once and read once: 2 B r M H d FLOPs, bound by arithmetic.
#include <cmath>
#include <limits>
#include <numeric>

#include "cpu/kernels.h"

namespace ficoco {
namespace {

constexpr int64_t kBlock = 64;           // kept patches of one task
constexpr int64_t kInsertionLimit = 16;  // more targets than this are chosen by partial sort

struct Panels {  // how r sources are cut: panel i holds sources [24 i, 24 i + width(i))
  int64_t r;
  int64_t count() const { return ceil_div(r, kPanel); }
  int64_t width(int64_t i) const { return panel_width(r - i * kPanel); }
  int64_t rows(int64_t i) const { return std::min(kPanel, r - i * kPanel); }
};

// Weights of the k chosen correlations, falling.
Fault weigh(const float* chosen, int64_t k, Alpha alpha, float* weights) {
  float total = 0.f;
  Fault fault = std::isfinite(chosen[0]) ? Fault::kNone : Fault::kNotFinite;
  for (int64_t t = 0; t < k; ++t) {
    weights[t] = alpha == Alpha::kSoftmax ? std::exp(chosen[t] - chosen[0]) : chosen[t];
    if (alpha == Alpha::kRatio && chosen[t] < 0.f) fault = std::max(fault, Fault::kNegativeRatio);
    total += weights[t];
  }
  const bool even = alpha == Alpha::kAverage || !(total > 0.f);
  for (int64_t t = 0; t < k; ++t) weights[t] = even ? 1.f / static_cast<float>(k) : weights[t] / total;
  return fault;
}

// Picks the targets of one panel from scores [candidates][width].
Fault choose(const Links& links, int64_t b, int64_t panel, const float* scores, int64_t width) {
  const Panels panels{links.r};
  const int64_t candidates = links.kept_count - links.first, k = links.k;
  std::vector<float> best(k * width), falling(k), column;
  std::vector<int32_t> place(k * width), order;
  Fault fault = Fault::kNone;
  for (int64_t i = 0; i < candidates * width; ++i) {
    if (std::isnan(scores[i])) return Fault::kNotFinite;
  }
  if (k <= kInsertionLimit) simd.top_columns(scores, candidates, width, k, best.data(), place.data());
  for (int64_t i = 0; i < panels.rows(panel); ++i) {
    if (k > kInsertionLimit) {
      column.resize(candidates);
      order.resize(candidates);
      for (int64_t j = 0; j < candidates; ++j) column[j] = scores[j * width + i];
      std::iota(order.begin(), order.end(), 0);
      std::partial_sort(order.begin(), order.begin() + k, order.end(), [&](int32_t x, int32_t y) {
        return column[x] > column[y] || (column[x] == column[y] && x < y);
      });
    }
    const int64_t at = (b * links.r + panel * kPanel + i) * k;
    for (int64_t t = 0; t < k; ++t) {
      const int32_t j = k > kInsertionLimit ? order[t] : place[t * width + i];
      links.targets[at + t] = j + links.first;
      falling[t] = scores[j * width + i];
    }
    fault = std::max(fault, weigh(falling.data(), k, links.alpha, links.weights + at));
  }
  return fault;
}

Fault worst(const std::vector<Fault>& faults) {
  return faults.empty() ? Fault::kNone : *std::max_element(faults.begin(), faults.end());
}

// scores[b][panel] holds [candidates][width] correlations of one panel's sources; `fill(b, panel, block)` computes
// kBlock candidates of them.
template <class Fill>
Fault correlate_panels(const Links& links, std::vector<float>& scores, const Fill& fill) {
  const Panels panels{links.r};
  const int64_t candidates = links.kept_count - links.first, blocks = ceil_div(candidates, kBlock);
  const int64_t count = panels.count();
  std::vector<Fault> faults(links.batch * count);
  each(links.batch * count * blocks,
       [&](int64_t task) { fill(task / (count * blocks), task / blocks % count, task % blocks); });
  each(links.batch * count, [&](int64_t task) {
    const float* panel = scores.data() + task * candidates * kPanel;
    faults[task] = choose(links, task / count, task % count, panel, panels.width(task % count));
  });
  return worst(faults);
}

// out[b][panel][head][d][width]: the sources' queries, times `factor`.
std::vector<float> pack_sources(const Links& links, const Rows& query, int64_t width, float factor) {
  const Panels panels{links.r};
  const int64_t count = panels.count(), stride = width * kPanel;
  std::vector<float> out(links.batch * count * query.heads * stride, 0.f);
  each(links.batch * count, [&](int64_t task) {
    const int64_t b = task / count, panel = task % count;
    FloatRows reader(query, width);
    std::vector<float> row(width);
    for (int64_t h = 0; h < query.heads; ++h) {
      for (int64_t i = 0; i < panels.rows(panel); ++i) {
        const float* x = reader.read(b, h, links.sources[b * links.r + panel * kPanel + i], 1);
        for (int64_t c = 0; c < width; ++c) row[c] = x[c] * factor;
        pack_column(row.data(), width, panels.width(panel), i, out.data() + (task * query.heads + h) * stride);
      }
    }
  });
  return out;
}

// Rows kept[begin..begin+count) of one head: floats in place with their indices, or a converted copy without.
struct KeptRows {
  const float* data;
  int64_t stride;
  const int64_t* index;
};

KeptRows read_kept(const Rows& rows, FloatRows& reader, std::vector<float>& scratch, int64_t b, int64_t h,
                   const int64_t* index, int64_t count, int64_t width) {
  if (rows.dtype == Dtype::kFloat) return {reader.read(b, h, 0, 1), rows.stride_n, index};
  scratch.resize(kBlock * width);
  for (int64_t j = 0; j < count; ++j) std::copy_n(reader.read(b, h, index[j], 1), width, scratch.data() + j * width);
  return {scratch.data(), width, nullptr};
}

Fault correlate_logits(const Links& links, const Rows& query, const Rows& key, int64_t width, float scale) {
  const Panels panels{links.r};
  const int64_t candidates = links.kept_count - links.first, group = query.heads / key.heads;
  const std::vector<float> packed = pack_sources(links, query, width, scale / static_cast<float>(query.heads));
  std::vector<float> scores(links.batch * panels.count() * candidates * kPanel);
  return correlate_panels(links, scores, [&](int64_t b, int64_t panel, int64_t block) {
    const int64_t begin = block * kBlock, count = std::min(kBlock, candidates - begin), w = panels.width(panel);
    const int64_t* index = links.kept + b * links.kept_count + links.first + begin;
    float* out = scores.data() + (b * panels.count() + panel) * candidates * kPanel + begin * w;
    std::fill_n(out, count * w, 0.f);
    FloatRows reader(key, width);
    std::vector<float> scratch;
    for (int64_t h = 0; h < query.heads; ++h) {
      const KeptRows rows = read_kept(key, reader, scratch, b, h / group, index, count, width);
      const float* sources = packed.data() + ((b * panels.count() + panel) * query.heads + h) * width * kPanel;
      simd.panel_dot(sources, w, width, rows.data, rows.stride, rows.index, count, out);
    }
  });
}

// Probabilities need the softmax over all N keys, head by head; a task is one panel of one image.
Fault correlate_probabilities(const Links& links, const Rows& query, const Rows& key, int64_t width, float scale) {
  const Panels panels{links.r};
  const int64_t n = links.tokens, candidates = links.kept_count - links.first, group = query.heads / key.heads;
  const std::vector<float> packed = pack_sources(links, query, width, 1.f);
  std::vector<Fault> faults(links.batch * panels.count());
  each(links.batch * panels.count(), [&](int64_t task) {
    const int64_t b = task / panels.count(), panel = task % panels.count(), w = panels.width(panel);
    FloatRows reader(key, width);
    std::vector<float> scores(n * w), mean(n * w, 0.f), sums(w);
    for (int64_t h = 0; h < query.heads; ++h) {
      std::fill(scores.begin(), scores.end(), 0.f);
      const float* k = reader.read(b, h / group, 0, n);
      simd.panel_dot(packed.data() + (task * query.heads + h) * width * kPanel, w, width, k, reader.stride(), nullptr,
                     n, scores.data());
      simd.exp_columns(scores.data(), n, w, scale, 0, sums.data());
      for (float& x : sums) x = 1.f / (x * static_cast<float>(query.heads));
      simd.add_scaled_columns(mean.data(), scores.data(), n, w, sums.data());
    }
    const int64_t* index = links.kept + b * links.kept_count + links.first;
    for (int64_t j = 0; j < candidates; ++j) {
      std::copy_n(mean.data() + index[j] * w, w, scores.data() + j * w);
    }
    faults[task] = choose(links, b, panel, scores.data(), w);
  });
  return worst(faults);
}

}  // namespace

Fault correlate_cpu(const Links& links, const Rows& query, const Rows& key, int64_t width, float scale, bool probs) {
  if (links.batch * links.r * links.k == 0) return Fault::kNone;
  return probs ? correlate_probabilities(links, query, key, width, scale)
               : correlate_logits(links, query, key, width, scale);
}

Fault correlate_key_cpu(const Links& links, const Rows& key, int64_t width) {
  if (links.batch * links.r * links.k == 0) return Fault::kNone;
  const int64_t n = links.tokens, chunks = ceil_div(n, kBlock);
  std::vector<float> metric(links.batch * n * width, 0.f);  // unit-length sums over heads
  each(links.batch * chunks, [&](int64_t task) {
    const int64_t b = task / chunks, begin = task % chunks * kBlock, count = std::min(kBlock, n - begin);
    FloatRows reader(key, width);
    float* out = metric.data() + (b * n + begin) * width;
    for (int64_t h = 0; h < key.heads; ++h) {
      const float* x = reader.read(b, h, begin, count);
      for (int64_t i = 0; i < count; ++i) simd.add(out + i * width, x + i * reader.stride(), width);
    }
    simd.divide(out, static_cast<float>(key.heads), count * width);
    for (int64_t i = 0; i < count; ++i) {
      const double length = std::sqrt(simd.sum_squares(out + i * width, width));
      simd.divide(out + i * width, static_cast<float>(std::max(length, 1e-12)), width);
    }
  });
  const Rows rows{metric.data(), Dtype::kFloat, 1, n * width, 0, width};
  return correlate_logits(links, rows, rows, width, 1.f);
}

Fault correlate_map_cpu(const Links& links, const Rows& attn) {
  const int64_t n = links.tokens, candidates = links.kept_count - links.first, k = links.k;
  std::vector<Fault> faults(links.batch * links.r);
  if (k == 0) return Fault::kNone;
  each(links.batch * links.r, [&](int64_t task) {
    const int64_t b = task / links.r;
    FloatRows reader(attn, n);
    std::vector<float> row(n, 0.f), column(candidates), falling(k);
    std::vector<int32_t> order(candidates);
    for (int64_t h = 0; h < attn.heads; ++h) simd.add(row.data(), reader.read(b, h, links.sources[task], 1), n);
    simd.divide(row.data(), static_cast<float>(attn.heads), n);
    const int64_t* index = links.kept + b * links.kept_count + links.first;
    for (int64_t j = 0; j < candidates; ++j) {
      column[j] = row[index[j]];
      if (std::isnan(column[j])) {
        faults[task] = Fault::kNotFinite;
        return;
      }
    }
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + k, order.end(),
                      [&](int32_t x, int32_t y) { return column[x] > column[y] || (column[x] == column[y] && x < y); });
    for (int64_t t = 0; t < k; ++t) {
      links.targets[task * k + t] = order[t] + links.first;
      falling[t] = column[order[t]];
    }
    faults[task] = weigh(falling.data(), k, links.alpha, links.weights + task * k);
  });
  return worst(faults);
}

}  // namespace ficoco
