// Class attention and patch attention of one layer.
//
// Logits: the mean over heads of inner products is one inner product over all heads, and the mean over a row is the
// inner product with the mean key. So q and k are each read once: 4 B H N d FLOPs, no N x N map. Bound by memory.
// Probabilities: 24 query rows at a time against all keys, softmax in a buffer of N x 24 floats, summed and forgotten:
// 2 B H N^2 d FLOPs, O(N) memory a thread.
// A given map is read once.
#include <cmath>

#include "cpu/kernels.h"

namespace ficoco {
namespace {

constexpr int64_t kChunk = 64;          // tokens of one task
constexpr int64_t kBlockFloats = 4096;  // rows read at once fit half of a 32 KiB first-level cache

int64_t block_rows(int64_t width) { return std::clamp<int64_t>(kBlockFloats / std::max<int64_t>(width, 1), 4, kChunk); }

// Heads that lie side by side in both tensors are one wide head: a row of 1024 floats instead of 16 rows of 64.
StatsParams merge_heads(StatsParams p) {
  const bool together = p.query.heads == p.key.heads && p.query.stride_h == p.width && p.key.stride_h == p.width;
  if (together && p.query.heads > 1) {
    p.width *= p.query.heads;
    p.query.heads = p.key.heads = 1;
  }
  return p;
}

// mean[b][h][d]: mean over the patches of the rows.
void patch_mean(const Rows& rows, const StatsParams& p, float* mean) {
  const int64_t chunks = ceil_div(p.tokens, kChunk), state = rows.heads * p.width;
  std::vector<float> partial(p.batch * chunks * state, 0.f);
  each(p.batch * chunks, [&](int64_t task) {
    const int64_t b = task / chunks, begin = std::max(task % chunks * kChunk, p.first);
    const int64_t end = std::min((task % chunks + 1) * kChunk, p.tokens), step = block_rows(p.width);
    FloatRows reader(rows, p.width);
    for (int64_t h = 0; h < rows.heads; ++h) {
      for (int64_t i = begin; i < end; i += step) {
        const int64_t count = std::min(step, end - i);
        const float* x = reader.read(b, h, i, count);
        simd.sum_rows(x, reader.stride(), count, p.width, partial.data() + task * state + h * p.width);
      }
    }
  });
  for (int64_t b = 0; b < p.batch; ++b) {
    float* m = mean + b * state;
    std::fill_n(m, state, 0.f);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) simd.add(m, partial.data() + (b * chunks + chunk) * state, state);
    simd.divide(m, static_cast<float>(p.tokens - p.first), state);
  }
}

// out[b][i] = factor * sum over heads of <vec[b][group of h], rows[b][h][first + i]>.
void patch_dots(const Rows& rows, int64_t vec_heads, const StatsParams& p, const float* vec, float factor, float* out) {
  const int64_t patches = p.tokens - p.first, chunks = ceil_div(patches, kChunk);
  const int64_t heads = std::max(rows.heads, vec_heads);
  each(p.batch * chunks, [&](int64_t task) {
    const int64_t b = task / chunks, begin = task % chunks * kChunk, end = std::min(begin + kChunk, patches);
    const int64_t step = block_rows(p.width);
    float* sums = out + b * patches;
    std::fill(sums + begin, sums + end, 0.f);
    FloatRows reader(rows, p.width);
    for (int64_t h = 0; h < heads; ++h) {
      const float* v = vec + (b * vec_heads + h * vec_heads / heads) * p.width;
      for (int64_t i = begin; i < end; i += step) {
        const int64_t count = std::min(step, end - i);
        const float* x = reader.read(b, h * rows.heads / heads, p.first + i, count);
        simd.dot_rows(x, reader.stride(), count, p.width, v, sums + i);
      }
    }
    for (int64_t i = begin; i < end; ++i) sums[i] *= factor;
  });
}

void logits_stats(const StatsParams& original) {
  const StatsParams p = merge_heads(original);
  const float factor = original.scale / static_cast<float>(original.query.heads);
  if (p.patches) {
    const Rows &averaged = p.column ? p.query : p.key, &other = p.column ? p.key : p.query;
    std::vector<float> mean(p.batch * averaged.heads * p.width);
    patch_mean(averaged, p, mean.data());
    patch_dots(other, averaged.heads, p, mean.data(), factor, p.patch_attention);
  }
  if (p.first) {
    std::vector<float> row(p.batch * p.query.heads * p.width);
    FloatRows reader(p.query, p.width);
    for (int64_t i = 0; i < p.batch * p.query.heads; ++i) {
      const float* x = reader.read(i / p.query.heads, i % p.query.heads, 0, 1);
      std::copy_n(x, p.width, row.data() + i * p.width);
    }
    patch_dots(p.key, p.query.heads, p, row.data(), factor, p.class_attention);
  }
}

// Panels of 24 query rows of one head: softmax against all keys, then into class row and sums.
void probability_stats(const StatsParams& p) {
  const int64_t n = p.tokens, heads = p.query.heads, group = heads / p.key.heads, patches = n - p.first;
  std::vector<float> class_part(p.batch * heads * n, 0.f), patch_part(p.batch * heads * n, 0.f);
  each(p.batch * heads, [&](int64_t task) {
    const int64_t b = task / heads, h = task % heads;
    FloatRows queries(p.query, p.width), keys(p.key, p.width);
    std::vector<float> panel(p.width * kPanel), scores(n * kPanel), sums(kPanel), inverse(kPanel);
    float *class_row = class_part.data() + task * n, *patch_row = patch_part.data() + task * n;
    const float* k = keys.read(b, h / group, 0, n);
    const int64_t end = p.patches ? n : p.first;  // without patch attention the class row is all that is needed
    for (int64_t begin = 0; begin < end; begin += kPanel) {
      const int64_t count = std::min(kPanel, end - begin), width = panel_width(count);
      std::fill(panel.begin(), panel.end(), 0.f);
      const float* q = queries.read(b, h, begin, count);
      for (int64_t i = 0; i < count; ++i) pack_column(q + i * queries.stride(), p.width, width, i, panel.data());
      std::fill_n(scores.begin(), n * width, 0.f);
      simd.panel_dot(panel.data(), width, p.width, k, keys.stride(), nullptr, n, scores.data());
      simd.exp_columns(scores.data(), n, width, p.scale, p.first, sums.data());
      for (int64_t i = 0; i < width; ++i) {
        const float total = sums[i] + (p.first ? scores[i] : 0.f);
        inverse[i] = i < count ? 1.f / total : 0.f;
      }
      if (begin == 0 && p.first) {
        for (int64_t j = 0; j < n; ++j) class_row[j] = scores[j * width] * inverse[0];
        inverse[0] = 0.f;  // the class token's query does not count for the patches
      }
      if (p.column) {
        simd.dot_rows(scores.data() + p.first * width, width, patches, width, inverse.data(), patch_row + p.first);
      } else {
        for (int64_t i = 0; i < count; ++i) patch_row[begin + i] = sums[i] * inverse[i];
      }
    }
  });
  for (int64_t b = 0; b < p.batch; ++b) {  // heads in a fixed order
    auto reduce = [&](const std::vector<float>& part, float divisor, float* out) {
      std::fill_n(out, patches, 0.f);
      for (int64_t h = 0; h < heads; ++h) simd.add(out, part.data() + (b * heads + h) * n + p.first, patches);
      simd.divide(out, divisor, patches);
    };
    if (p.first) reduce(class_part, static_cast<float>(heads), p.class_attention + b * patches);
    const float cells = static_cast<float>(heads) * static_cast<float>(patches);
    if (p.patches) reduce(patch_part, cells, p.patch_attention + b * patches);
  }
}

// class_attention = -cos(mean over patches of the head-mean keys, head-mean key), the factor 1 / H cancels.
void key_stats(const StatsParams& p) {
  const int64_t d = p.width, chunks = ceil_div(p.tokens, kChunk);
  std::vector<float> keys(p.batch * p.tokens * d, 0.f);
  each(p.batch * chunks, [&](int64_t task) {
    const int64_t b = task / chunks, begin = task % chunks * kChunk, count = std::min(kChunk, p.tokens - begin);
    FloatRows reader(p.key, d);
    for (int64_t h = 0; h < p.key.heads; ++h) {
      const float* x = reader.read(b, h, begin, count);
      for (int64_t i = 0; i < count; ++i)
        simd.add(keys.data() + (b * p.tokens + begin + i) * d, x + i * reader.stride(), d);
    }
  });
  constexpr double kTiny = 1e-12;
  each(p.batch, [&](int64_t b) {
    const float* k = keys.data() + b * p.tokens * d;
    std::vector<float> mean(d, 0.f);
    simd.sum_rows(k, d, p.tokens, d, mean.data());
    simd.divide(mean.data(), static_cast<float>(p.tokens), d);
    const double norm = std::max(std::sqrt(simd.sum_squares(mean.data(), d)), kTiny);
    for (int64_t i = 0; i < p.tokens; ++i) {
      const double length = std::max(std::sqrt(simd.sum_squares(k + i * d, d)), kTiny);
      p.class_attention[b * p.tokens + i] = static_cast<float>(-simd.dot(mean.data(), k + i * d, d) / (norm * length));
    }
  });
}

}  // namespace

void attention_stats_cpu(const StatsParams& p) {
  if (p.batch == 0) return;
  if (!p.first) key_stats(p);
  if (!p.first && !p.patches) return;
  p.probs ? probability_stats(p) : logits_stats(p);
}

void attention_stats_map_cpu(const MapStatsParams& p) {
  const int64_t n = p.tokens, heads = p.attn.heads, patches = n - p.first, chunks = ceil_div(n, kChunk);
  if (p.batch == 0) return;
  const float cells = static_cast<float>(heads) * static_cast<float>(patches);
  std::vector<float> partial(p.column && p.patches ? p.batch * chunks * patches : 0, 0.f);
  each(p.batch * chunks, [&](int64_t task) {
    const int64_t b = task / chunks, begin = task % chunks * kChunk, end = std::min(begin + kChunk, n);
    FloatRows reader(p.attn, n);
    if (begin == 0 && p.first) {
      float* row = p.class_attention + b * patches;
      std::fill_n(row, patches, 0.f);
      for (int64_t h = 0; h < heads; ++h) simd.add(row, reader.read(b, h, 0, 1) + 1, patches);
      simd.divide(row, static_cast<float>(heads), patches);
    }
    if (!p.patches) return;
    for (int64_t i = std::max(begin, p.first); i < end; ++i) {
      float total = 0.f;
      for (int64_t h = 0; h < heads; ++h) {
        const float* row = reader.read(b, h, i, 1) + p.first;
        if (p.column) {
          simd.add(partial.data() + task * patches, row, patches);
        } else {
          total += simd.sum(row, patches);
        }
      }
      if (!p.column) p.patch_attention[b * patches + i - p.first] = total / cells;
    }
  });
  if (!p.first) std::fill_n(p.class_attention, p.batch * patches, 0.f);
  if (!p.column || !p.patches) return;
  for (int64_t b = 0; b < p.batch; ++b) {
    float* out = p.patch_attention + b * patches;
    std::fill_n(out, patches, 0.f);
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      simd.add(out, partial.data() + (b * chunks + chunk) * patches, patches);
    simd.divide(out, cells, patches);
  }
}

}  // namespace ficoco
