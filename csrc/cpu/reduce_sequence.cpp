// All that a reducing layer of a language model does with its sequence: the kernels of its five operators, one after
// the other, with their lists and results of between in one thread's scratch memory.
//
// FLOPs are those of token_attention, correlate_tokens and compress. Memory O(N + r k) besides theirs.
#include <algorithm>
#include <vector>

#include "cpu/kernels.h"
#include "images.h"

namespace ficoco {
namespace {

using Indices = std::vector<int64_t>;
using Floats = std::vector<float>;

// The columns among which the text after the visual tokens is, and for each of them 1 if it is text, else 0. One that
// is not is replaced by that of the last visual token: with weight 0, padding that holds NaN would still count.
struct Text {
  Indices columns;
  Floats chosen;
  float count = 0.f;

  explicit Text(const ReduceSequenceParams& p) : columns(p.after), chosen(p.after) {
    const int64_t last_visual = p.visual[p.visual_count - 1];
    for (int64_t t = 0; t < p.after; ++t) {
      const int64_t column = p.count - p.after + t;
      chosen[t] = column > last_visual && (!p.real || p.real[column]) ? 1.f : 0.f;
      columns[t] = chosen[t] > 0.f ? column : last_visual;
      count += chosen[t];
    }
  }
  float share(bool mean) const { return mean ? 1.f / std::max(count, 1.f) : 1.f; }
};

TokenAttentionParams attention_of(const ReduceSequenceParams& p, const Indices& others, const Floats& weights,
                                  bool probs, float* out) {
  const auto count = static_cast<int64_t>(others.size());
  return {.query = p.query,
          .key = p.key,
          .tokens = p.visual,
          .others = others.data(),
          .weights = weights.data(),
          .key_mask = p.real,
          .batch = 1,
          .keys = p.count,
          .offset = 0,
          .width = p.width,
          .count = p.visual_count,
          .other_count = count,
          .sets = count ? static_cast<int64_t>(weights.size()) / count : 0,
          .scale = p.scale,
          .probs = probs,
          .column = probs,
          .causal = probs,
          .out = out};
}

// scores: (2, n) of the visual tokens among themselves, and with the text.
void rank_by_last(const ReduceSequenceParams& p, Floats& scores) {
  int64_t last = p.count - 1;
  while (last > 0 && p.real && !p.real[last]) --last;
  token_attention_image(attention_of(p, {last}, {1.f}, true, scores.data() + p.visual_count));
}

void rank_by_all(const ReduceSequenceParams& p, const Text& text, Floats& scores) {
  const int64_t n = p.visual_count, all = n + p.after;
  Indices others(p.visual, p.visual + n);
  others.insert(others.end(), text.columns.begin(), text.columns.end());
  Floats weights(2 * all, 0.f);
  std::fill_n(weights.begin(), n, p.visual_mean ? static_cast<float>(1. / static_cast<double>(n)) : 1.f);
  for (int64_t t = 0; t < p.after; ++t) weights[all + n + t] = text.chosen[t] * text.share(p.text_mean);
  token_attention_image(attention_of(p, others, weights, p.ranking == Ranking::kProbs, scores.data()));
  if (text.count == 0.f) {
    for (int64_t i = 0; i < n; ++i) scores[n + i] = -scores[i];
  }
}

}  // namespace

Fault reduce_sequence_image(const ReduceSequenceParams& p) {
  const int64_t n = p.visual_count, left = n - p.r;
  const Text text(p);
  Floats scores(2 * n, 0.f);
  p.ranking == Ranking::kLast ? rank_by_last(p, scores) : rank_by_all(p, text, scores);
  Indices sources(p.r), kept(left), targets(p.r * p.k);
  Fault fault = filter_image(filter_of(p, scores.data(), scores.data() + n, sources.data(), kept.data()));
  if (fault != Fault::kNone) return fault;
  if (p.r * p.k > 0) {
    Indices leaving(p.r), staying(left);
    std::transform(sources.begin(), sources.end(), leaving.begin(), [&](int64_t i) { return p.visual[i]; });
    std::transform(kept.begin(), kept.end(), staying.begin(), [&](int64_t i) { return p.visual[i]; });
    Floats shares(text.chosen);
    for (float& share : shares) share *= text.share(p.indirect_mean);
    fault = correlate_tokens_image({.query = p.query,
                                    .key = p.key,
                                    .sources = leaving.data(),
                                    .candidates = staying.data(),
                                    .others = text.columns.data(),
                                    .others_weight = shares.data(),
                                    .key_mask = p.real,
                                    .batch = 1,
                                    .keys = p.count,
                                    .offset = 0,
                                    .width = p.width,
                                    .r = p.r,
                                    .candidate_count = left,
                                    .other_count = p.after,
                                    .k = p.k,
                                    .scale = p.scale,
                                    .gamma = p.gamma,
                                    .alpha = p.alpha,
                                    .probs = p.probs,
                                    .column = p.probs,
                                    .causal = p.probs,
                                    .targets = targets.data(),
                                    .weights = p.weights});
    if (fault != Fault::kNone) return fault;
  }
  fault = to_sequence_image({.visual = p.visual,
                             .sources = sources.data(),
                             .kept = kept.data(),
                             .targets = targets.data(),
                             .batch = 1,
                             .count = n,
                             .r = p.r,
                             .k = p.k,
                             .tokens = p.count,
                             .source_positions = p.sources,
                             .kept_positions = p.kept,
                             .target_indices = p.targets,
                             .visual_positions = p.left_visual});
  if (fault == Fault::kNone) compress_image(compress_of(p));
  return fault;
}

}  // namespace ficoco
