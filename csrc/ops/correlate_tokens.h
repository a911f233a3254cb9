// correlate.tokens: Correlate among the tokens of a decoder.
#pragma once
#include "ops/call.h"
#include "ops/device.h"

namespace ficoco {

struct CorrelateTokensCall : Call {
  Tensor targets, weights;
  Tensor sources, candidates, others;  // contiguous
  CorrelateTokensParams params;
};

inline CorrelateTokensCall correlate_tokens_call(const Tensor& query_, const Tensor& key_, const Tensor& sources,
                                                 const Tensor& candidates, const Tensor& others, const Tensor& weights,
                                                 const std::optional<Tensor>& key_mask, int64_t k, double scale,
                                                 double gamma, std::string_view alpha, bool probs, bool column,
                                                 bool causal) {
  constexpr const char* op = "correlate";
  check::chosen_tokens(op, query_, key_, key_mask,
                       {{"sources", &sources}, {"candidates", &candidates}, {"others", &others}});
  check::floating_or_double(op, "weights", weights);
  FICOCO_VALUE(weights.sizes() == others.sizes(), op, "weights",
               check::text("(", others.size(0), ", ", others.size(1), ") like others"), check::describe(weights),
               "one weight for each of others");
  check::same_device(op, "weights", weights, query_);
  const int64_t b = query_.size(0), r = sources.size(1), m = candidates.size(1);
  FICOCO_VALUE(k >= 0 && k <= m, op, "k", check::text("in [0, ", m, "], the number of kept patches"), k,
               "lower k or r");
  FICOCO_VALUE(gamma >= 0 && gamma <= 1, op, "gamma", "in [0, 1]", gamma, "1 is direct attention alone");
  CorrelateTokensCall call;
  const Tensor query = call.hold(readable(query_)), key = call.hold(readable(key_));
  call.sources = sources.contiguous();
  call.candidates = candidates.contiguous();
  call.others = others.contiguous();
  call.targets = longs(query, {b, r, k});
  call.weights = floats(query, {b, r, k});
  call.params = {.query = rows_of(query),
                 .key = rows_of(key),
                 .sources = call.sources.const_data_ptr<int64_t>(),
                 .candidates = call.candidates.const_data_ptr<int64_t>(),
                 .others = call.others.const_data_ptr<int64_t>(),
                 .others_weight = floats_of(call, weights),
                 .key_mask = mask_of(call, key_mask),
                 .batch = b,
                 .keys = key.size(2),
                 .offset = key.size(2) - query.size(2),
                 .width = query.size(3),
                 .r = r,
                 .candidate_count = m,
                 .other_count = others.size(1),
                 .k = k,
                 .scale = static_cast<float>(scale),
                 .gamma = static_cast<float>(gamma),
                 .alpha = alpha_of(alpha),
                 .probs = probs,
                 .column = column,
                 .causal = causal,
                 .targets = call.targets.mutable_data_ptr<int64_t>(),
                 .weights = call.weights.mutable_data_ptr<float>()};
  return call;
}

inline std::tuple<Tensor, Tensor> correlate_tokens(const Tensor& query, const Tensor& key, const Tensor& sources,
                                                   const Tensor& candidates, const Tensor& others,
                                                   const Tensor& weights, const std::optional<Tensor>& key_mask,
                                                   int64_t k, double scale, double gamma, std::string_view alpha,
                                                   bool probs, bool column, bool causal) {
  const CorrelateTokensCall call = correlate_tokens_call(query, key, sources, candidates, others, weights, key_mask, k,
                                                         scale, gamma, alpha, probs, column, causal);
  Device::of(call.targets).run(call);
  return {call.targets, call.weights};
}

}  // namespace ficoco
