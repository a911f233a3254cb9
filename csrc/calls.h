// What the operators of every device begin with: check the arguments, make them readable, allocate the results and fill
// the params. Nothing is launched or computed here, and no value is read.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <vector>

#include "params.h"

namespace ficoco {

// `held` keeps alive what the params point to.
struct Held {
  std::vector<at::Tensor> held;
  const at::Tensor& hold(const at::Tensor& t) { return held.emplace_back(t); }
};

struct StatsCall : Held {
  at::Tensor class_attention, patch_attention;
  StatsParams params;
};
StatsCall stats_call(const at::Tensor& query, const at::Tensor& key, double scale, bool class_token, bool probs,
                     bool column, bool patches);

struct MapStatsCall : Held {
  at::Tensor class_attention, patch_attention;
  MapStatsParams params;
};
MapStatsCall stats_call(const at::Tensor& attn, bool class_token, bool column, bool patches);

struct FilterSettings {
  int64_t r;
  double lam;
  bool normalize;
  double penalty;
  int64_t window, grid_height, grid_width;
  bool class_token;
};
struct FilterCall : Held {
  at::Tensor redundancy, sources, kept;
  at::Tensor ids;  // undefined if there are none
  FilterParams params;
};
FilterCall filter_call(const at::Tensor& patch_attention, const at::Tensor& class_attention,
                       const std::optional<at::Tensor>& ids, const FilterSettings& settings);

struct CorrelateCall : Held {
  at::Tensor targets, weights;
  at::Tensor sources, kept;  // contiguous
  CorrelateParams params;
};
CorrelateCall correlate_call(const at::Tensor& query, const at::Tensor& key, const at::Tensor& sources,
                             const at::Tensor& kept, int64_t k, double scale, std::string_view alpha, bool class_token,
                             bool probs);
CorrelateCall correlate_call(const at::Tensor& attn, const at::Tensor& sources, const at::Tensor& kept, int64_t k,
                             std::string_view alpha, bool class_token);
CorrelateCall correlate_key_call(const at::Tensor& key, const at::Tensor& sources, const at::Tensor& kept, int64_t k,
                                 std::string_view alpha, bool class_token);

struct MatchCall : Held {
  at::Tensor redundancy, sources, kept, targets, weights;
  MatchParams params;
};
MatchCall match_call(const at::Tensor& key, int64_t r, bool class_token, bool distill_token);

struct TokenCall : Held {
  at::Tensor out;
  at::Tensor tokens, others;  // contiguous
  TokenParams params;
};
TokenCall token_call(const at::Tensor& query, const at::Tensor& key, const at::Tensor& tokens, const at::Tensor& others,
                     const at::Tensor& weights, const std::optional<at::Tensor>& key_mask, double scale, bool probs,
                     bool column, bool causal);

struct TokenLinksCall : Held {
  at::Tensor targets, weights;
  at::Tensor sources, candidates, others;  // contiguous
  TokenLinksParams params;
};
TokenLinksCall token_links_call(const at::Tensor& query, const at::Tensor& key, const at::Tensor& sources,
                                const at::Tensor& candidates, const at::Tensor& others, const at::Tensor& weights,
                                const std::optional<at::Tensor>& key_mask, int64_t k, double scale, double gamma,
                                std::string_view alpha, bool probs, bool column, bool causal);

struct SequenceCall : Held {
  at::Tensor sources, kept, targets, visual;
  at::Tensor given_targets;  // contiguous
  SequenceParams params;
};
SequenceCall sequence_call(const at::Tensor& visual, const at::Tensor& sources, const at::Tensor& kept,
                           const at::Tensor& targets, int64_t tokens);

struct CompressCall : Held {
  at::Tensor out, size, source_map;
  at::Tensor sources, kept, targets;  // contiguous
  CompressParams params;
};
CompressCall compress_call(const at::Tensor& tokens, const at::Tensor& sources, const at::Tensor& kept,
                           const at::Tensor& targets, const at::Tensor& weights, const std::optional<at::Tensor>& size,
                           bool size_weighted);

}  // namespace ficoco
