// The params of some images of a batch: `count` of them from image b on.
#pragma once
#include "params.h"

namespace ficoco {

inline Rows image(Rows rows, int64_t b) {
  if (rows.data) rows.data = static_cast<const char*>(rows.data) + b * rows.stride_b * size_of(rows.dtype);
  return rows;
}

template <class T>
T* image(T* data, int64_t b, int64_t size) {
  return data ? data + b * size : nullptr;
}

inline AttentionStatsParams image(AttentionStatsParams p, int64_t b, int64_t count = 1) {
  const int64_t patches = p.tokens - p.first;
  p.query = image(p.query, b);
  p.key = image(p.key, b);
  p.class_attention = image(p.class_attention, b, patches);
  p.patch_attention = image(p.patch_attention, b, patches);
  p.batch = count;
  return p;
}

inline AttentionStatsMapParams image(AttentionStatsMapParams p, int64_t b, int64_t count = 1) {
  const int64_t patches = p.tokens - p.first;
  p.attn = image(p.attn, b);
  p.class_attention = image(p.class_attention, b, patches);
  p.patch_attention = image(p.patch_attention, b, patches);
  p.batch = count;
  return p;
}

inline FilterParams image(FilterParams p, int64_t b, int64_t count = 1) {
  p.patch_attention = image(p.patch_attention, b, p.patches);
  p.class_attention = image(p.class_attention, b, p.patches);
  p.ids = image(p.ids, b, p.patches);
  p.redundancy = image(p.redundancy, b, p.patches);
  p.sources = image(p.sources, b, p.r);
  p.kept = image(p.kept, b, p.patches + p.first - p.r);
  p.batch = count;
  return p;
}

inline CorrelateParams image(CorrelateParams p, int64_t b, int64_t count = 1) {
  p.query = image(p.query, b);
  p.key = image(p.key, b);
  p.attn = image(p.attn, b);
  p.sources = image(p.sources, b, p.r);
  p.kept = image(p.kept, b, p.kept_count);
  p.targets = image(p.targets, b, p.r * p.k);
  p.weights = image(p.weights, b, p.r * p.k);
  p.batch = count;
  return p;
}

inline MatchParams image(MatchParams p, int64_t b, int64_t count = 1) {
  p.key = image(p.key, b);
  p.redundancy = image(p.redundancy, b, p.tokens - p.first);
  p.sources = image(p.sources, b, p.r);
  p.kept = image(p.kept, b, p.tokens - p.r);
  p.targets = image(p.targets, b, p.r);
  p.weights = image(p.weights, b, p.r);
  p.batch = count;
  return p;
}

inline TokenAttentionParams image(TokenAttentionParams p, int64_t b, int64_t count = 1) {
  p.query = image(p.query, b);
  p.key = image(p.key, b);
  p.tokens = image(p.tokens, b, p.count);
  p.others = image(p.others, b, p.other_count);
  p.weights = image(p.weights, b, p.sets * p.other_count);
  p.key_mask = image(p.key_mask, b, p.keys);
  p.out = image(p.out, b, p.sets * p.count);
  p.batch = count;
  return p;
}

inline CorrelateTokensParams image(CorrelateTokensParams p, int64_t b, int64_t count = 1) {
  p.query = image(p.query, b);
  p.key = image(p.key, b);
  p.sources = image(p.sources, b, p.r);
  p.candidates = image(p.candidates, b, p.candidate_count);
  p.others = image(p.others, b, p.other_count);
  p.others_weight = image(p.others_weight, b, p.other_count);
  p.key_mask = image(p.key_mask, b, p.keys);
  p.targets = image(p.targets, b, p.r * p.k);
  p.weights = image(p.weights, b, p.r * p.k);
  p.batch = count;
  return p;
}

inline ToSequenceParams image(ToSequenceParams p, int64_t b, int64_t count = 1) {
  p.visual = image(p.visual, b, p.count);
  p.sources = image(p.sources, b, p.r);
  p.kept = image(p.kept, b, p.count - p.r);
  p.targets = image(p.targets, b, p.r * p.k);
  p.source_positions = image(p.source_positions, b, p.r);
  p.kept_positions = image(p.kept_positions, b, p.tokens - p.r);
  p.target_indices = image(p.target_indices, b, p.r * p.k);
  p.visual_positions = image(p.visual_positions, b, p.count - p.r);
  p.batch = count;
  return p;
}

inline CosinesParams image(CosinesParams p, int64_t b, int64_t count = 1) {
  p.features = image(p.features, b);
  p.things = image(p.things, b);
  p.cosines = image(p.cosines, b, p.tokens * p.thing_count);
  p.batch = count;
  return p;
}

inline GreedySelectParams image(GreedySelectParams p, int64_t b, int64_t count = 1) {
  p.features = image(p.features, b);
  p.saliency = image(p.saliency, b, p.tokens);
  p.mask = image(p.mask, b, p.tokens);
  p.order = image(p.order, b, p.count);
  p.gains = image(p.gains, b, p.count);
  p.batch = count;
  return p;
}

inline GreedyCoverParams image(GreedyCoverParams p, int64_t b, int64_t count = 1) {
  p.cover = image(p.cover, b);
  p.mask = image(p.mask, b, p.tokens);
  p.order = image(p.order, b, p.count);
  p.gains = image(p.gains, b, p.count);
  p.batch = count;
  return p;
}

inline BipartiteThinParams image(BipartiteThinParams p, int64_t b, int64_t count = 1) {
  p.features = image(p.features, b);
  p.order = image(p.order, b, p.length);
  p.mask = image(p.mask, b, p.tokens);
  p.left = image(p.left, b, p.count);
  p.batch = count;
  return p;
}

inline WindowSimilarityParams image(WindowSimilarityParams p, int64_t b, int64_t count = 1) {
  p.tokens = image(p.tokens, b);
  p.similarity = image(p.similarity, b, p.down * p.across);
  p.batch = count;
  return p;
}

inline ReceivedFromParams image(ReceivedFromParams p, int64_t b, int64_t count = 1) {
  p.query = image(p.query, b);
  p.key = image(p.key, b);
  p.visual = image(p.visual, b, p.count);
  p.text = image(p.text, b, p.text_count);
  p.chosen = image(p.chosen, b, p.text_count);
  p.key_mask = image(p.key_mask, b, p.keys);
  p.total = image(p.total, b, p.count);
  p.peak = image(p.peak, b, p.count);
  p.batch = count;
  return p;
}

inline TopOfSegmentsParams image(TopOfSegmentsParams p, int64_t b, int64_t count = 1) {
  p.scores = image(p.scores, b, p.tokens);
  p.segments = image(p.segments, b, p.segment_stride);
  p.counts = image(p.counts, b, p.groups);
  p.kept = image(p.kept, b, p.total);
  p.batch = count;
  return p;
}

inline CompressParams image(CompressParams p, int64_t b, int64_t count = 1) {
  p.tokens = image(p.tokens, b);
  p.sources = image(p.sources, b, p.r);
  p.kept = image(p.kept, b, p.kept_count);
  p.targets = image(p.targets, b, p.r * p.k);
  p.weights = image(p.weights, b, p.r * p.k);
  p.size = image(p.size, b, p.count);
  p.out = static_cast<char*>(p.out) + b * p.kept_count * p.channels * size_of(p.tokens.dtype);
  p.out_size = image(p.out_size, b, p.kept_count);
  p.source_map = image(p.source_map, b, p.count);
  p.batch = count;
  return p;
}

inline ReduceSequenceParams image(ReduceSequenceParams p, int64_t b, int64_t count = 1) {
  const int64_t left = p.count - p.r;
  p.tokens = image(p.tokens, b);
  p.query = image(p.query, b);
  p.key = image(p.key, b);
  p.visual = image(p.visual, b, p.visual_count);
  p.real = image(p.real, b, p.count);
  p.ids = image(p.ids, b, p.visual_count);
  p.size = image(p.size, b, p.count);
  p.out = static_cast<char*>(p.out) + b * left * p.channels * size_of(p.tokens.dtype);
  p.out_size = image(p.out_size, b, left);
  p.source_map = image(p.source_map, b, p.count);
  p.redundancy = image(p.redundancy, b, p.visual_count);
  p.sources = image(p.sources, b, p.r);
  p.kept = image(p.kept, b, left);
  p.targets = image(p.targets, b, p.r * p.k);
  p.weights = image(p.weights, b, p.r * p.k);
  p.left_visual = image(p.left_visual, b, p.visual_count - p.r);
  p.batch = count;
  return p;
}

// What compress does with the selection of `p`, once that is made.
inline CompressParams compress_of(const ReduceSequenceParams& p) {
  return {.tokens = p.tokens,
          .sources = p.sources,
          .kept = p.kept,
          .targets = p.targets,
          .weights = p.weights,
          .size = p.size,
          .batch = p.batch,
          .count = p.count,
          .channels = p.channels,
          .r = p.r,
          .kept_count = p.count - p.r,
          .k = p.k,
          .size_weighted = p.size_weighted,
          .out = p.out,
          .out_size = p.out_size,
          .source_map = p.source_map};
}

// What filter does with the scores (B, n) of the visual tokens, among themselves and with the text. Its choice is that
// of indices into `visual`.
inline FilterParams filter_of(const ReduceSequenceParams& p, const float* among, const float* with_text,
                              int64_t* sources, int64_t* kept) {
  const bool last = p.ranking == Ranking::kLast;
  return {.patch_attention = among,
          .class_attention = with_text,
          .ids = p.ids,
          .batch = p.batch,
          .patches = p.visual_count,
          .r = p.r,
          .first = 0,
          .lam = last ? 0.f : p.beta,
          .penalty = last ? 1.f : p.penalty,
          .normalize = false,
          .window = p.window,
          .grid_height = p.grid_height,
          .grid_width = p.grid_width,
          .redundancy = p.redundancy,
          .sources = sources,
          .kept = kept};
}

}  // namespace ficoco
