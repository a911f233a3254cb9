// reduce: one whole reduction, attention_stats, filter, correlate and compress in one call.
#pragma once
#include <variant>

#include "ops/attention_stats.h"
#include "ops/compress.h"
#include "ops/correlate.h"
#include "ops/filter.h"

namespace ficoco {

struct ReduceCall {
  std::variant<AttentionStatsCall, AttentionStatsMapCall> stats;
  FilterCall filter;
  CorrelateCall correlate;
  CompressCall compress;
};

using Reduced = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// `make_correlate` makes the call of correlate from sources and kept.
template <class StatsCall, class MakeCorrelate>
Reduced run_reduce(const Tensor& tokens, const StatsCall& stats, const std::optional<Tensor>& ids,
                   const std::optional<Tensor>& size, const FilterSettings& settings, bool size_weighted,
                   const MakeCorrelate& make_correlate) {
  const FilterCall filter = filter_call(stats.patch_attention, stats.class_attention, ids, settings);
  const CorrelateCall correlate = make_correlate(filter.sources, filter.kept);
  const CompressCall compress =
      compress_call(tokens, filter.sources, filter.kept, correlate.targets, correlate.weights, size, size_weighted);
  Device::of(compress.out).run(ReduceCall{stats, filter, correlate, compress});
  return {compress.out,   compress.size, compress.source_map, filter.redundancy,
          filter.sources, filter.kept,   correlate.targets,   correlate.weights};
}

inline Reduced reduce(const Tensor& tokens, const Tensor& query, const Tensor& key, double scale,
                      const std::optional<Tensor>& ids, const std::optional<Tensor>& size, int64_t r, int64_t k,
                      bool class_token, double lam, bool probs, bool column, bool normalize, double penalty,
                      int64_t window, int64_t grid_height, int64_t grid_width, std::string_view correlation,
                      std::string_view alpha, bool size_weighted) {
  check::correlation(correlation);
  return run_reduce(tokens, attention_stats_call(query, key, scale, class_token, probs, column, lam != 0), ids, size,
                    {r, lam, normalize, penalty, window, grid_height, grid_width, class_token}, size_weighted,
                    [&](const Tensor& sources, const Tensor& kept) {
                      return correlation == "key" ? correlate_key_call(key, sources, kept, k, alpha, class_token)
                                                  : correlate_call(query, key, sources, kept, k, scale, alpha,
                                                                   class_token, correlation == "probs");
                    });
}

inline Reduced reduce_map(const Tensor& tokens, const Tensor& attn, const std::optional<Tensor>& ids,
                          const std::optional<Tensor>& size, int64_t r, int64_t k, bool class_token, double lam, bool,
                          bool column, bool normalize, double penalty, int64_t window, int64_t grid_height,
                          int64_t grid_width, std::string_view, std::string_view alpha, bool size_weighted) {
  return run_reduce(tokens, attention_stats_call(attn, class_token, column, lam != 0), ids, size,
                    {r, lam, normalize, penalty, window, grid_height, grid_width, class_token}, size_weighted,
                    [&](const Tensor& sources, const Tensor& kept) {
                      return correlate_call(attn, sources, kept, k, alpha, class_token);
                    });
}

}  // namespace ficoco
