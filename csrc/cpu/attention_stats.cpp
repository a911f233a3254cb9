// Class attention and patch attention of one layer.
//
// Logits: the mean over heads of inner products is one inner product over all heads, and the mean over a row is the
// inner product with the mean key. So q and k are each read once, without an N x N map. A task owns 64 tokens. 4 H N d
// FLOPs, bound by memory.
//
// Probabilities: a task owns a head and takes 24 query rows at a time against all keys. Their softmax stands in a
// buffer of N x 24 floats, which the next rows reuse. 2 H N^2 d FLOPs, O(N) memory a thread.
//
// A given map is read once.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "cpu/simd.h"

namespace ficoco {
namespace {

constexpr int64_t kChunk = 64;          // tokens of one task
constexpr int64_t kBlockFloats = 4096;  // rows read at once fit half of a 32 KiB first-level cache

int64_t block_rows(int64_t width) { return std::clamp<int64_t>(kBlockFloats / std::max<int64_t>(width, 1), 4, kChunk); }

// Heads that lie side by side in both tensors are one wide head: a row of 1024 floats instead of 16 rows of 64.
AttentionStatsParams merge_heads(AttentionStatsParams p) {
  const bool together = p.query.heads == p.key.heads && p.query.stride_h == p.width && p.key.stride_h == p.width;
  if (together && p.query.heads > 1) {
    p.width *= p.query.heads;
    p.query.heads = p.key.heads = 1;
  }
  return p;
}

// One row of `width` floats for each head.
using HeadRows = std::vector<float>;

// Reads every patch row of `rows` once. With `sum`, *sum becomes the sum of the rows, head by head; with `vec`,
// dots[i] = factor * sum over heads of <vec[head], row i>.
void read_patches(const Rows& rows, const AttentionStatsParams& p, HeadRows* sum, const HeadRows* vec, float factor,
                  float* dots) {
  const int64_t chunks = ceil_div(p.tokens, kChunk), state = rows.heads * p.width, step = block_rows(p.width);
  std::vector<float> partial(sum ? chunks * state : 0, 0.f);
  if (vec) std::fill_n(dots, p.tokens - p.first, 0.f);
  each(chunks, [&](int64_t chunk) {
    const int64_t begin = std::max(chunk * kChunk, p.first), end = std::min((chunk + 1) * kChunk, p.tokens);
    FloatRows reader(rows, p.width);
    for (int64_t h = 0; h < rows.heads; ++h) {
      for (int64_t i = begin; i < end; i += step) {
        const int64_t count = std::min(step, end - i);
        const float* x = reader.read(h, i, count);
        if (sum) simd.sum_rows(x, reader.stride(), count, p.width, partial.data() + chunk * state + h * p.width);
        if (vec) simd.dot_rows(x, reader.stride(), count, p.width, vec->data() + h * p.width, dots + i - p.first);
      }
    }
    if (vec) {
      for (int64_t i = begin - p.first; i < end - p.first; ++i) dots[i] *= factor;
    }
  });
  if (!sum) return;
  sum->assign(state, 0.f);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) simd.add(sum->data(), partial.data() + chunk * state, state);
}

// Query heads that share a key head, added: a key row's dot with the sum is the sum of its dots.
HeadRows fold_groups(const HeadRows& rows, const AttentionStatsParams& p) {
  const int64_t group = p.query.heads / p.key.heads;
  HeadRows out(p.key.heads * p.width, 0.f);
  for (int64_t h = 0; h < p.query.heads; ++h) {
    simd.add(out.data() + h / group * p.width, rows.data() + h * p.width, p.width);
  }
  return out;
}

HeadRows repeat_groups(const HeadRows& rows, const AttentionStatsParams& p) {
  const int64_t group = p.query.heads / p.key.heads;
  HeadRows out(p.query.heads * p.width);
  for (int64_t h = 0; h < p.query.heads; ++h) {
    std::copy_n(rows.data() + h / group * p.width, p.width, out.data() + h * p.width);
  }
  return out;
}

HeadRows class_query(const AttentionStatsParams& p) {
  HeadRows out(p.query.heads * p.width);
  FloatRows reader(p.query, p.width);
  for (int64_t h = 0; h < p.query.heads; ++h) std::copy_n(reader.read(h, 0, 1), p.width, out.data() + h * p.width);
  return out;
}

void logits_stats(const AttentionStatsParams& original) {
  const AttentionStatsParams p = merge_heads(original);
  const float factor = original.scale / static_cast<float>(original.query.heads);
  const float mean_factor = factor / static_cast<float>(p.tokens - p.first);
  const bool row = p.patches && !p.column, column = p.patches && p.column;
  HeadRows sum, class_row;
  if (p.first) class_row = fold_groups(class_query(p), p);
  if (row || p.first) {
    read_patches(p.key, p, row ? &sum : nullptr, p.first ? &class_row : nullptr, factor, p.class_attention);
  }
  if (row) {
    sum = repeat_groups(sum, p);
    read_patches(p.query, p, nullptr, &sum, mean_factor, p.patch_attention);
  }
  if (column) {
    read_patches(p.query, p, &sum, nullptr, 1.f, nullptr);
    sum = fold_groups(sum, p);
    read_patches(p.key, p, nullptr, &sum, mean_factor, p.patch_attention);
  }
}

// Panels of 24 query rows of one head: softmax against all keys, then into class row and sums.
void probability_stats(const AttentionStatsParams& p) {
  const int64_t n = p.tokens, heads = p.query.heads, group = heads / p.key.heads, patches = n - p.first;
  std::vector<float> class_part(heads * n, 0.f), patch_part(heads * n, 0.f);
  each(heads, [&](int64_t h) {
    FloatRows queries(p.query, p.width), keys(p.key, p.width);
    std::vector<float> panel(p.width * kPanel), scores(n * kPanel), sums(kPanel), inverse(kPanel);
    float *class_row = class_part.data() + h * n, *patch_row = patch_part.data() + h * n;
    const float* k = keys.read(h / group, 0, n);
    const int64_t end = p.patches ? n : p.first;  // without patch attention the class row is all that is needed
    for (int64_t begin = 0; begin < end; begin += kPanel) {
      const int64_t count = std::min(kPanel, end - begin), width = panel_width(count);
      const float* q = queries.read(h, begin, count);
      const float* rows[kPanel];
      for (int64_t i = 0; i < count; ++i) rows[i] = q + i * queries.stride();
      simd.pack_panel(rows, count, p.width, width, 1.f, panel.data());
      std::fill_n(scores.begin(), n * width, 0.f);
      simd.panel_dot(panel.data(), width, p.width, k, keys.stride(), nullptr, n, scores.data());
      simd.exp_columns(scores.data(), n, width, p.scale, p.first, sums.data());
      for (int64_t i = 0; i < width; ++i) {
        const float total = sums[i] + (p.first ? scores[i] : 0.f);
        inverse[i] = i < count ? 1.f / total : 0.f;
      }
      if (begin == 0 && p.first) {
        for (int64_t j = 0; j < n; ++j) {
          class_row[j] = scores[j * width] * inverse[0];
          scores[j * width] = 0.f;  // the class token's query does not count for the patches, even if it is NaN
        }
        inverse[0] = 0.f;
      }
      if (p.column) {
        simd.dot_rows(scores.data() + p.first * width, width, patches, width, inverse.data(), patch_row + p.first);
      } else {
        for (int64_t i = 0; i < count; ++i) patch_row[begin + i] = sums[i] * inverse[i];
      }
    }
  });
  auto reduce = [&](const std::vector<float>& part, float divisor, float* out) {  // heads in a fixed order
    std::fill_n(out, patches, 0.f);
    for (int64_t h = 0; h < heads; ++h) simd.add(out, part.data() + h * n + p.first, patches);
    simd.divide(out, divisor, patches);
  };
  if (p.first) reduce(class_part, static_cast<float>(heads), p.class_attention);
  if (p.patches) reduce(patch_part, static_cast<float>(heads) * static_cast<float>(patches), p.patch_attention);
}

// class_attention = -cos(mean over patches of the head-mean keys, head-mean key). The factor 1 / H cancels, except
// against the bound on lengths.
void key_stats(const AttentionStatsParams& p) {
  const int64_t d = p.width, n = p.tokens, chunks = ceil_div(n, kChunk);
  std::vector<float> keys(n * d, 0.f), mean(d, 0.f);
  each(chunks, [&](int64_t chunk) {
    const int64_t begin = chunk * kChunk, count = std::min(kChunk, n - begin);
    FloatRows reader(p.key, d);
    for (int64_t h = 0; h < p.key.heads; ++h) {
      const float* x = reader.read(h, begin, count);
      for (int64_t i = 0; i < count; ++i) simd.add(keys.data() + (begin + i) * d, x + i * reader.stride(), d);
    }
  });
  const double tiny = 1e-12 * static_cast<double>(p.key.heads);
  simd.sum_rows(keys.data(), d, n, d, mean.data());
  simd.divide(mean.data(), static_cast<float>(n), d);
  simd.unit_rows(mean.data(), d, 1, d, tiny, mean.data());  // at unit length first: products of long keys overflow
  simd.unit_rows(keys.data(), d, n, d, tiny, keys.data());
  for (int64_t i = 0; i < n; ++i) p.class_attention[i] = -simd.dot(mean.data(), keys.data() + i * d, d);
}

}  // namespace

void attention_stats_image(const AttentionStatsParams& p) {
  if (!p.first) key_stats(p);
  if (!p.first && !p.patches) return;
  p.probs ? probability_stats(p) : logits_stats(p);
}

void attention_stats_image(const AttentionStatsMapParams& p) {
  const int64_t n = p.tokens, heads = p.attn.heads, patches = n - p.first, chunks = ceil_div(n, kChunk);
  const float cells = static_cast<float>(heads) * static_cast<float>(patches);
  if (p.first) {
    FloatRows reader(p.attn, n);
    std::fill_n(p.class_attention, patches, 0.f);
    for (int64_t h = 0; h < heads; ++h) simd.add(p.class_attention, reader.read(h, 0, 1) + 1, patches);
    simd.divide(p.class_attention, static_cast<float>(heads), patches);
  } else {
    std::fill_n(p.class_attention, patches, 0.f);
  }
  if (!p.patches) return;
  std::vector<float> partial(p.column ? chunks * patches : 0, 0.f);
  each(chunks, [&](int64_t chunk) {
    const int64_t begin = std::max(chunk * kChunk, p.first), end = std::min((chunk + 1) * kChunk, n);
    FloatRows reader(p.attn, n);
    for (int64_t i = begin; i < end; ++i) {
      float total = 0.f;
      for (int64_t h = 0; h < heads; ++h) {
        const float* row = reader.read(h, i, 1) + p.first;
        if (p.column) {
          simd.add(partial.data() + chunk * patches, row, patches);
        } else {
          total += simd.sum(row, patches);
        }
      }
      if (!p.column) p.patch_attention[i - p.first] = total / cells;
    }
  });
  if (!p.column) return;
  std::fill_n(p.patch_attention, patches, 0.f);
  for (int64_t c = 0; c < chunks; ++c) simd.add(p.patch_attention, partial.data() + c * patches, patches);
  simd.divide(p.patch_attention, cells, patches);
}

}  // namespace ficoco
