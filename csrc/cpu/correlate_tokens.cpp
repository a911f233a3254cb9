// Targets among candidates, by direct attention and by attention through other tokens:
// C = gamma A[s, c] + (1 - gamma) A[s, o] diag(w) A[o, c]; with `column`, A[o, s]^T stands for A[s, o].
//
// Logits are linear in the query, so a source with its others is one query: C = (gamma Q[s] + (1 - gamma) A[s, o]
// diag(w) Q[o]) K[c]^T, and queries that share a key head are added up first. 24 sources at a time: 2 Hk d (r m + 2 r
// R) FLOPs, memory O(Hk d R + r m) at most. This is the path for logits unless sources outnumber candidates, or with
// `column`.
//
// Otherwise the rows of A of the sources and of the others, each at the columns it needs, are made 24 rows at a time,
// head by head, and averaged over heads. Then one source at a time adds up the others' rows. 2 H d (r m + r R + R m)
// FLOPs for logits, 2 H d T (r + R) for probabilities; 2 r R m for the second term. Memory O(r m + (r + m) R).
#include <algorithm>
#include <vector>

#include "cpu/choose.h"
#include "cpu/kernels.h"
#include "cpu/masked_softmax.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"

namespace ficoco {
namespace {

struct List {
  const int64_t* tokens;
  int64_t count;
};

struct Block {
  int64_t stride;
  std::vector<float> values;
  float* row(int64_t i) { return values.data() + i * stride; }
};

// Row i: mean over heads of the attention of token rows[i] to the tokens of `first`, then to those of `second`.
Block attention_block(const CorrelateTokensParams& p, const List& rows, const List& first, const List& second) {
  const int64_t heads = p.query.heads, group = heads / p.key.heads;
  std::vector<int64_t> columns(first.tokens, first.tokens + first.count);
  columns.insert(columns.end(), second.tokens, second.tokens + second.count);
  const auto column_count = static_cast<int64_t>(columns.size());
  Block out{column_count, std::vector<float>(rows.count * column_count)};
  each(ceil_div(rows.count, kPanel), [&](int64_t task) {
    const int64_t begin = task * kPanel, count = std::min(kPanel, rows.count - begin), w = panel_width(count);
    const int64_t* queries = rows.tokens + begin;
    FloatRows keys(p.key, p.width);
    std::vector<FloatRows> readers(count, FloatRows(p.query, p.width));
    std::vector<float> panel(p.width * w), sums(column_count * w, 0.f), scores(p.probs ? p.keys * w : 0), inverse(w);
    const float factor = (p.probs ? 1.f : p.scale) / static_cast<float>(heads);
    for (int64_t h = 0; h < heads; ++h) {
      const float* source[kPanel];
      for (int64_t i = 0; i < count; ++i) source[i] = readers[i].read(h, queries[i] - p.offset, 1);
      simd.pack_panel(source, count, p.width, w, 1.f, panel.data());
      const float* k = keys.read(h / group, 0, p.keys);
      if (!p.probs) {
        simd.panel_dot(panel.data(), w, p.width, k, keys.stride(), columns.data(), column_count, sums.data());
        continue;
      }
      std::fill(scores.begin(), scores.end(), 0.f);
      simd.panel_dot(panel.data(), w, p.width, k, keys.stride(), nullptr, p.keys, scores.data());
      masked_softmax({p.key_mask, p.causal}, queries, count, p.keys, w, p.scale, scores.data(), inverse.data());
      for (int64_t j = 0; j < column_count; ++j) {
        simd.add_scaled_columns(sums.data() + j * w, scores.data() + columns[j] * w, 1, w, inverse.data());
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      float* row = out.row(begin + i);
      for (int64_t j = 0; j < column_count; ++j) row[j] = sums[j * w + i] * factor;
    }
  });
  return out;
}

// Whether one query for a source and its others is the cheaper way.
bool is_linear(const CorrelateTokensParams& p) {
  return !p.probs && !p.column && (p.gamma == 1.f || p.other_count == 0 || p.r <= p.candidate_count);
}

// The queries of token `token`, those that share a key head added up: sums[key head][d] += ...
void add_queries(const CorrelateTokensParams& p, FloatRows& reader, int64_t token, float* sums) {
  const int64_t group = p.query.heads / p.key.heads;
  for (int64_t h = 0; h < p.query.heads; ++h) {
    simd.add(sums + h / group * p.width, reader.read(h, token - p.offset, 1), p.width);
  }
}

// Queries of the others, [key head][d][other].
std::vector<float> queries_of_others(const CorrelateTokensParams& p, int64_t others) {
  const int64_t state = p.key.heads * p.width;
  std::vector<float> out(state * others);
  each(ceil_div(others, kPanel), [&](int64_t task) {
    FloatRows reader(p.query, p.width);
    std::vector<float> sums(state);
    for (int64_t t = task * kPanel; t < std::min((task + 1) * kPanel, others); ++t) {
      std::fill(sums.begin(), sums.end(), 0.f);
      add_queries(p, reader, p.others[t], sums.data());
      for (int64_t c = 0; c < state; ++c) out[c * others + t] = sums[c];
    }
  });
  return out;
}

Fault choose_linear(const CorrelateTokensParams& p) {
  const int64_t d = p.width, state = p.key.heads * d, m = p.candidate_count;
  const int64_t others = p.gamma < 1.f ? p.other_count : 0;
  const float factor = p.scale / static_cast<float>(p.query.heads);
  const std::vector<float> other_queries = queries_of_others(p, others);
  std::vector<Fault> faults(p.r);
  each(ceil_div(p.r, kPanel), [&](int64_t task) {
    const int64_t begin = task * kPanel, count = std::min(kPanel, p.r - begin), w = panel_width(count);
    FloatRows queries(p.query, d), keys(p.key, d);
    std::vector<float> own(count * state, 0.f), panel(state * w), way(others * w, 0.f), scores(m * w, 0.f), row(m);
    const float* rows[kPanel];
    for (int64_t i = 0; i < count; ++i) {
      rows[i] = own.data() + i * state;
      add_queries(p, queries, p.sources[begin + i], own.data() + i * state);
    }
    simd.pack_panel(rows, count, state, w, 1.f, panel.data());
    const auto multiply = [&](const int64_t* tokens, int64_t token_count, float* out) {
      for (int64_t h = 0; h < p.key.heads; ++h) {
        const float* k = keys.read(h, 0, p.keys);
        simd.panel_dot(panel.data() + h * d * w, w, d, k, keys.stride(), tokens, token_count, out);
      }
    };
    if (others) {
      multiply(p.others, others, way.data());
      for (int64_t t = 0; t < others; ++t) {
        const float share = (1.f - p.gamma) * p.others_weight[t] * factor;
        for (int64_t i = 0; i < w; ++i) way[t * w + i] *= share;
      }
    }
    for (float& x : panel) x *= p.gamma;
    if (others) simd.panel_dot(way.data(), w, others, other_queries.data(), others, nullptr, state, panel.data());
    multiply(p.candidates, m, scores.data());
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = (begin + i) * p.k;
      for (int64_t j = 0; j < m; ++j) row[j] = scores[j * w + i] * factor;
      faults[begin + i] = choose_row(row.data(), m, p.k, 0, p.alpha, p.targets + at, p.weights + at);
    }
  });
  return worst(faults);
}

}  // namespace

Fault correlate_tokens_image(const CorrelateTokensParams& p) {
  if (p.r * p.k == 0) return Fault::kNone;
  if (is_linear(p)) return choose_linear(p);
  const int64_t m = p.candidate_count;
  const List sources{p.sources, p.r}, candidates{p.candidates, m}, none{};
  const List others = p.gamma < 1.f ? List{p.others, p.other_count} : none;
  Block given = attention_block(p, sources, candidates, p.column ? none : others);
  Block onward = attention_block(p, others, candidates, p.column ? sources : none);
  std::vector<Fault> faults(p.r);
  each(p.r, [&](int64_t i) {
    float* row = given.row(i);
    for (int64_t j = 0; j < m; ++j) row[j] *= p.gamma;
    for (int64_t t = 0; t < others.count; ++t) {
      const float way = p.column ? onward.row(t)[m + i] : row[m + t];
      simd.axpy(row, (1.f - p.gamma) * p.others_weight[t] * way, onward.row(t), m);
    }
    faults[i] = choose_row(row, m, p.k, 0, p.alpha, p.targets + i * p.k, p.weights + i * p.k);
  });
  return worst(faults);
}

}  // namespace ficoco
