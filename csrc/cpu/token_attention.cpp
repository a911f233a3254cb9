// Weighted sums of the attention between chosen tokens.
//
// Logits: a weighted sum of inner products is one inner product with the weighted sum. A task owns 64 tokens. 2 W (N +
// R) H d FLOPs, no map.
//
// Probabilities: a task owns a head and takes 24 query rows at a time against all keys. Their softmax stands in a
// buffer of T x 24 floats, which the next rows reuse. 2 Q T H d FLOPs for Q query rows, O(W N H) memory besides.
#include <algorithm>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/masked_softmax.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"

namespace ficoco {
namespace {

constexpr int64_t kChunk = 64;  // tokens of one task

// A token's row of one head, by its position among the keys.
const float* query_row(const TokenAttentionParams& p, FloatRows& reader, int64_t h, int64_t token) {
  return reader.read(h, token - p.offset, 1);
}

void logits_sums(const TokenAttentionParams& p) {
  const Rows &summed = p.column ? p.query : p.key, &other = p.column ? p.key : p.query;
  const int64_t d = p.width, state = summed.heads * d, shift = p.column ? p.offset : 0;
  std::vector<float> sums(p.sets * state, 0.f);  // [set][head][d]
  each(summed.heads, [&](int64_t h) {
    FloatRows reader(summed, d);
    for (int64_t r = 0; r < p.other_count; ++r) {
      const float* x = reader.read(h, p.others[r] - shift, 1);
      for (int64_t w = 0; w < p.sets; ++w) {
        const float weight = p.weights[w * p.other_count + r];
        if (weight != 0.f) simd.axpy(sums.data() + w * state + h * d, weight, x, d);
      }
    }
  });
  const float factor = p.scale / static_cast<float>(p.query.heads);
  const int64_t group = p.query.heads / p.key.heads;
  each(ceil_div(p.count, kChunk), [&](int64_t chunk) {
    FloatRows reader(other, d);
    for (int64_t i = chunk * kChunk; i < std::min((chunk + 1) * kChunk, p.count); ++i) {
      for (int64_t w = 0; w < p.sets; ++w) {
        float total = 0.f;
        for (int64_t h = 0; h < p.query.heads; ++h) {
          const float* x = p.column ? reader.read(h / group, p.tokens[i], 1) : query_row(p, reader, h, p.tokens[i]);
          total += simd.dot(x, sums.data() + w * state + (p.column ? h : h / group) * d, d);
        }
        p.out[w * p.count + i] = total * factor;
      }
    }
  });
}

void probability_sums(const TokenAttentionParams& p) {
  const int64_t heads = p.query.heads, group = heads / p.key.heads, state = p.sets * p.count;
  const int64_t* queries = p.column ? p.others : p.tokens;
  const int64_t query_count = p.column ? p.other_count : p.count;
  std::vector<float> parts(heads * state, 0.f);  // [head][set][token]
  each(heads, [&](int64_t h) {
    FloatRows reader(p.query, p.width), keys(p.key, p.width);
    std::vector<FloatRows> readers(kPanel, reader);
    std::vector<float> panel(p.width * kPanel), scores(p.keys * kPanel), inverse(kPanel), factors(kPanel);
    const float* k = keys.read(h / group, 0, p.keys);
    float* part = parts.data() + h * state;
    for (int64_t begin = 0; begin < query_count; begin += kPanel) {
      const int64_t count = std::min(kPanel, query_count - begin), width = panel_width(count);
      const float* rows[kPanel];
      for (int64_t i = 0; i < count; ++i) rows[i] = query_row(p, readers[i], h, queries[begin + i]);
      simd.pack_panel(rows, count, p.width, width, 1.f, panel.data());
      std::fill_n(scores.begin(), p.keys * width, 0.f);
      simd.panel_dot(panel.data(), width, p.width, k, keys.stride(), nullptr, p.keys, scores.data());
      masked_softmax({p.key_mask, p.causal}, queries + begin, count, p.keys, width, p.scale, scores.data(),
                     inverse.data());
      for (int64_t w = 0; w < p.sets; ++w) {
        const float* weights = p.weights + w * p.other_count;
        if (p.column) {
          for (int64_t i = 0; i < width; ++i) factors[i] = i < count ? weights[begin + i] * inverse[i] : 0.f;
          for (int64_t n = 0; n < p.count; ++n) {
            part[w * p.count + n] += simd.dot(scores.data() + p.tokens[n] * width, factors.data(), width);
          }
        } else {
          std::fill(factors.begin(), factors.end(), 0.f);
          for (int64_t r = 0; r < p.other_count; ++r) {
            simd.axpy(factors.data(), weights[r], scores.data() + p.others[r] * width, width);
          }
          for (int64_t i = 0; i < count; ++i) part[w * p.count + begin + i] = factors[i] * inverse[i];
        }
      }
    }
  });
  std::fill_n(p.out, state, 0.f);
  for (int64_t h = 0; h < heads; ++h) simd.add(p.out, parts.data() + h * state, state);  // heads in a fixed order
  simd.divide(p.out, static_cast<float>(heads), state);
}

}  // namespace

void token_attention_image(const TokenAttentionParams& p) { p.probs ? probability_sums(p) : logits_sums(p); }

}  // namespace ficoco
