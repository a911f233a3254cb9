// token_attention: the attention that chosen tokens of a decoder give to others or receive from them.
#pragma once
#include "ops/call.h"
#include "ops/device.h"

namespace ficoco {

struct TokenAttentionCall : Call {
  Tensor out;
  Tensor tokens, others;  // contiguous
  TokenAttentionParams params;
};

inline TokenAttentionCall token_attention_call(const Tensor& query_, const Tensor& key_, const Tensor& tokens,
                                               const Tensor& others, const Tensor& weights,
                                               const std::optional<Tensor>& key_mask, double scale, bool probs,
                                               bool column, bool causal) {
  constexpr const char* op = "token_attention";
  check::chosen_tokens(op, query_, key_, key_mask, {{"tokens", &tokens}, {"others", &others}});
  check::floating_or_double(op, "weights", weights);
  const int64_t b = query_.size(0);
  FICOCO_VALUE(weights.dim() == 3 && weights.size(0) == b && weights.size(2) == others.size(1), op, "weights",
               check::text("(", b, ", W, ", others.size(1), ")"), check::describe(weights),
               "one weight for each of others");
  check::same_device(op, "weights", weights, query_);
  TokenAttentionCall call;
  const Tensor query = call.hold(readable(query_)), key = call.hold(readable(key_));
  call.tokens = tokens.contiguous();
  call.others = others.contiguous();
  call.out = floats(query, {b, weights.size(1), tokens.size(1)});
  call.params = {.query = rows_of(query),
                 .key = rows_of(key),
                 .tokens = call.tokens.const_data_ptr<int64_t>(),
                 .others = call.others.const_data_ptr<int64_t>(),
                 .weights = floats_of(call, weights),
                 .key_mask = mask_of(call, key_mask),
                 .batch = b,
                 .keys = key.size(2),
                 .offset = key.size(2) - query.size(2),
                 .width = query.size(3),
                 .count = tokens.size(1),
                 .other_count = others.size(1),
                 .sets = weights.size(1),
                 .scale = static_cast<float>(scale),
                 .probs = probs,
                 .column = column,
                 .causal = causal,
                 .out = call.out.mutable_data_ptr<float>()};
  return call;
}

inline Tensor token_attention(const Tensor& query, const Tensor& key, const Tensor& tokens, const Tensor& others,
                              const Tensor& weights, const std::optional<Tensor>& key_mask, double scale, bool probs,
                              bool column, bool causal) {
  const TokenAttentionCall call =
      token_attention_call(query, key, tokens, others, weights, key_mask, scale, probs, column, causal);
  Device::of(call.out).run(call);
  return call.out;
}

}  // namespace ficoco
