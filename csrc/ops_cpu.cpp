// The operators on CPU tensors. The schemas are in ficoco_ext/ops/library.py.
#include <torch/library.h>

#include "calls.h"
#include "checks.h"
#include "cpu/kernels.h"
#include "images.h"

namespace ficoco {
namespace {

using at::Tensor;

void raise(Fault fault) {
  FICOCO_VALUE(fault != Fault::kScoreNotFinite, "filter", "redundancy", "finite", "NaN or infinity among the scores",
               "check the attention it is made of");
  FICOCO_VALUE(fault != Fault::kCorrelationNotFinite, "correlate", "correlations", "finite",
               "NaN or infinity among them", "check the attention they are made of");
  FICOCO_VALUE(fault != Fault::kKeyNotFinite, "match", "key", "finite", "NaN or infinity among the keys",
               "check the layer they come from");
  FICOCO_VALUE(fault != Fault::kNegativeRatio, "correlate", "attn", "non-negative for alpha='ratio'",
               "a negative correlation", "use softmax");
  FICOCO_VALUE(fault != Fault::kNotAscending, "to_sequence", "visual", "ascending columns in [0, tokens)", "others",
               "pass where the image tokens are");
  FICOCO_VALUE(fault != Fault::kNoPartition, "to_sequence", "sources and kept",
               "ascending and together every place in visual once", "other places", "pass what filter returned");
}

template <class Call>
std::tuple<Tensor, Tensor> run_stats(const Call& call) {
  each_image(call.params.batch, [&](int64_t b) { attention_stats_image(image(call.params, b)); });
  return {call.class_attention, call.patch_attention};
}

std::tuple<Tensor, Tensor> attention_stats(const Tensor& query, const Tensor& key, double scale, bool class_token,
                                           bool probs, bool column, bool patches) {
  return run_stats(stats_call(query, key, scale, class_token, probs, column, patches));
}

std::tuple<Tensor, Tensor> attention_stats_map(const Tensor& attn, bool class_token, bool column, bool patches) {
  return run_stats(stats_call(attn, class_token, column, patches));
}

void check_ids(const FilterCall& call) {
  if (call.ids.defined()) {
    check::in_range("filter", "ids", call.ids, call.params.grid_height * call.params.grid_width);
  }
}

std::tuple<Tensor, Tensor, Tensor> filter(const Tensor& patch_attention, const Tensor& class_attention,
                                          const std::optional<Tensor>& ids, int64_t r, double lam, bool normalize,
                                          double penalty, int64_t window, int64_t grid_height, int64_t grid_width,
                                          bool class_token) {
  const FilterCall call = filter_call(patch_attention, class_attention, ids,
                                      {r, lam, normalize, penalty, window, grid_height, grid_width, class_token});
  check_ids(call);
  std::vector<Fault> faults(call.params.batch);
  each_image(call.params.batch, [&](int64_t b) { faults[b] = filter_image(image(call.params, b)); });
  raise(worst(faults));
  return {call.redundancy, call.sources, call.kept};
}

std::tuple<Tensor, Tensor> run_correlate(const CorrelateCall& call) {
  check::in_range("correlate", "sources", call.sources, call.params.tokens);
  check::in_range("correlate", "kept", call.kept, call.params.tokens);
  std::vector<Fault> faults(call.params.batch);
  each_image(call.params.batch, [&](int64_t b) { faults[b] = correlate_image(image(call.params, b)); });
  raise(worst(faults));
  return {call.targets, call.weights};
}

std::tuple<Tensor, Tensor> correlate(const Tensor& query, const Tensor& key, const Tensor& sources, const Tensor& kept,
                                     int64_t k, double scale, std::string_view alpha, bool class_token, bool probs) {
  return run_correlate(correlate_call(query, key, sources, kept, k, scale, alpha, class_token, probs));
}

std::tuple<Tensor, Tensor> correlate_map(const Tensor& attn, const Tensor& sources, const Tensor& kept, int64_t k,
                                         std::string_view alpha, bool class_token) {
  return run_correlate(correlate_call(attn, sources, kept, k, alpha, class_token));
}

std::tuple<Tensor, Tensor> correlate_key(const Tensor& key, const Tensor& sources, const Tensor& kept, int64_t k,
                                         std::string_view alpha, bool class_token) {
  return run_correlate(correlate_key_call(key, sources, kept, k, alpha, class_token));
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> match(const Tensor& key, int64_t r, bool class_token,
                                                         bool distill_token) {
  const MatchCall call = match_call(key, r, class_token, distill_token);
  std::vector<Fault> faults(call.params.batch);
  each_image(call.params.batch, [&](int64_t b) { faults[b] = match_image(image(call.params, b)); });
  raise(worst(faults));
  return {call.redundancy, call.sources, call.kept, call.targets, call.weights};
}

std::tuple<Tensor, Tensor, Tensor> compress(const Tensor& tokens, const Tensor& sources, const Tensor& kept,
                                            const Tensor& targets, const Tensor& weights,
                                            const std::optional<Tensor>& size, bool size_weighted) {
  const CompressCall call = compress_call(tokens, sources, kept, targets, weights, size, size_weighted);
  check::in_range("compress", "sources", call.sources, call.params.count);
  check::in_range("compress", "kept", call.kept, call.params.count);
  check::in_range("compress", "targets", call.targets, call.params.kept_count);
  each_image(call.params.batch, [&](int64_t b) { compress_image(image(call.params, b)); });
  return {call.out, call.size, call.source_map};
}

Tensor token_attention(const Tensor& query, const Tensor& key, const Tensor& tokens, const Tensor& others,
                       const Tensor& weights, const std::optional<Tensor>& key_mask, double scale, bool probs,
                       bool column, bool causal) {
  constexpr const char* op = "token_attention";
  const TokenCall call = token_call(query, key, tokens, others, weights, key_mask, scale, probs, column, causal);
  const int64_t first_query = call.params.offset;
  check::in_range(op, "tokens", call.tokens, call.params.keys, column ? 0 : first_query);
  check::in_range(op, "others", call.others, call.params.keys, column ? first_query : 0);
  each_image(call.params.batch, [&](int64_t b) { token_attention_image(image(call.params, b)); });
  return call.out;
}

std::tuple<Tensor, Tensor> correlate_tokens(const Tensor& query, const Tensor& key, const Tensor& sources,
                                            const Tensor& candidates, const Tensor& others, const Tensor& weights,
                                            const std::optional<Tensor>& key_mask, int64_t k, double scale,
                                            double gamma, std::string_view alpha, bool probs, bool column,
                                            bool causal) {
  constexpr const char* op = "correlate";
  const TokenLinksCall call = token_links_call(query, key, sources, candidates, others, weights, key_mask, k, scale,
                                               gamma, alpha, probs, column, causal);
  const int64_t keys = call.params.keys;
  check::in_range(op, "sources", call.sources, keys, call.params.offset);
  check::in_range(op, "candidates", call.candidates, keys);
  check::in_range(op, "others", call.others, keys, call.params.offset);
  std::vector<Fault> faults(call.params.batch);
  each_image(call.params.batch, [&](int64_t b) { faults[b] = correlate_tokens_image(image(call.params, b)); });
  raise(worst(faults));
  return {call.targets, call.weights};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> to_sequence(const Tensor& visual, const Tensor& sources, const Tensor& kept,
                                                       const Tensor& targets, int64_t tokens) {
  const SequenceCall call = sequence_call(visual, sources, kept, targets, tokens);
  check::in_range("to_sequence", "targets", call.given_targets, call.params.count - call.params.r);
  std::vector<Fault> faults(call.params.batch);
  each_image(call.params.batch, [&](int64_t b) { faults[b] = to_sequence_image(image(call.params, b)); });
  raise(worst(faults));
  return {call.sources, call.kept, call.targets, call.visual};
}

using Reduced = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// All four stages of an image before the next image: its keys are still in the cache when Correlate reads them again.
template <class Stats, class MakeCorrelate>
Reduced run_reduce(const Tensor& tokens, const Stats& stats, const std::optional<Tensor>& ids,
                   const std::optional<Tensor>& size, const FilterSettings& settings, bool size_weighted,
                   const MakeCorrelate& make_correlate) {
  const FilterCall filter = filter_call(stats.patch_attention, stats.class_attention, ids, settings);
  check_ids(filter);
  const CorrelateCall correlate = make_correlate(filter.sources, filter.kept);
  const CompressCall compress =
      compress_call(tokens, filter.sources, filter.kept, correlate.targets, correlate.weights, size, size_weighted);
  std::vector<Fault> faults(stats.params.batch);
  each_image(stats.params.batch, [&](int64_t b) {
    attention_stats_image(image(stats.params, b));
    faults[b] = filter_image(image(filter.params, b));
    if (faults[b] == Fault::kNone) faults[b] = correlate_image(image(correlate.params, b));
    if (faults[b] == Fault::kNone) compress_image(image(compress.params, b));
  });
  raise(worst(faults));
  return {compress.out,   compress.size, compress.source_map, filter.redundancy,
          filter.sources, filter.kept,   correlate.targets,   correlate.weights};
}

Reduced reduce(const Tensor& tokens, const Tensor& query, const Tensor& key, double scale,
               const std::optional<Tensor>& ids, const std::optional<Tensor>& size, int64_t r, int64_t k,
               bool class_token, double lam, bool probs, bool column, bool normalize, double penalty, int64_t window,
               int64_t grid_height, int64_t grid_width, std::string_view correlation, std::string_view alpha,
               bool size_weighted) {
  check::correlation(correlation);
  const StatsCall stats = stats_call(query, key, scale, class_token, probs, column, lam != 0);
  return run_reduce(
      tokens, stats, ids, size, {r, lam, normalize, penalty, window, grid_height, grid_width, class_token},
      size_weighted, [&](const Tensor& sources, const Tensor& kept) {
        return correlation == "key"
                   ? correlate_key_call(key, sources, kept, k, alpha, class_token)
                   : correlate_call(query, key, sources, kept, k, scale, alpha, class_token, correlation == "probs");
      });
}

Reduced reduce_map(const Tensor& tokens, const Tensor& attn, const std::optional<Tensor>& ids,
                   const std::optional<Tensor>& size, int64_t r, int64_t k, bool class_token, double lam, bool,
                   bool column, bool normalize, double penalty, int64_t window, int64_t grid_height, int64_t grid_width,
                   std::string_view, std::string_view alpha, bool size_weighted) {
  const MapStatsCall stats = stats_call(attn, class_token, column, lam != 0);
  return run_reduce(tokens, stats, ids, size,
                    {r, lam, normalize, penalty, window, grid_height, grid_width, class_token}, size_weighted,
                    [&](const Tensor& sources, const Tensor& kept) {
                      return correlate_call(attn, sources, kept, k, alpha, class_token);
                    });
}

}  // namespace
}  // namespace ficoco

TORCH_LIBRARY_IMPL(ficoco, CPU, m) {
  m.impl("attention_stats", &ficoco::attention_stats);
  m.impl("attention_stats.map", &ficoco::attention_stats_map);
  m.impl("filter", &ficoco::filter);
  m.impl("correlate", &ficoco::correlate);
  m.impl("correlate.map", &ficoco::correlate_map);
  m.impl("correlate.key", &ficoco::correlate_key);
  m.impl("match", &ficoco::match);
  m.impl("correlate.tokens", &ficoco::correlate_tokens);
  m.impl("compress", &ficoco::compress);
  m.impl("token_attention", &ficoco::token_attention);
  m.impl("to_sequence", &ficoco::to_sequence);
  m.impl("reduce", &ficoco::reduce);
  m.impl("reduce.map", &ficoco::reduce_map);
}
