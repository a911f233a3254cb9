// correlate, among the patches of an image: from query and key, from a given map (.map) or by cosines of keys (.key).
// Among the tokens of a decoder it is correlate_tokens.h.
#pragma once
#include "ops/call.h"
#include "ops/device.h"

namespace ficoco {

struct CorrelateCall : Call {
  Tensor targets, weights;
  Tensor sources, kept;  // contiguous
  CorrelateParams params;
};

// The checked selection and room for the links; the attention is the caller's.
inline CorrelateCall links_call(const Tensor& sources, const Tensor& kept, int64_t batch, int64_t tokens, int64_t k,
                                std::string_view alpha, bool class_token, const Tensor& like) {
  constexpr const char* op = "correlate";
  check::selection(op, batch, tokens, sources, kept);
  check::same_device(op, "sources", sources, like);
  check::same_device(op, "kept", kept, like);
  const int64_t candidates = std::max<int64_t>(kept.size(1) - class_token, 0), r = sources.size(1);
  FICOCO_VALUE(k >= 0 && k <= candidates, op, "k", check::text("in [0, ", candidates, "], the number of kept patches"),
               k, "lower k or r");
  CorrelateCall call;
  call.sources = sources.contiguous();
  call.kept = kept.contiguous();
  call.targets = longs(like, {batch, r, k});
  call.weights = floats(like, {batch, r, k});
  call.params = {.sources = call.sources.const_data_ptr<int64_t>(),
                 .kept = call.kept.const_data_ptr<int64_t>(),
                 .batch = batch,
                 .tokens = tokens,
                 .r = r,
                 .kept_count = kept.size(1),
                 .k = k,
                 .first = class_token,
                 .alpha = alpha_of(alpha),
                 .targets = call.targets.mutable_data_ptr<int64_t>(),
                 .weights = call.weights.mutable_data_ptr<float>()};
  return call;
}

inline CorrelateCall correlate_call(const Tensor& query_, const Tensor& key_, const Tensor& sources, const Tensor& kept,
                                    int64_t k, double scale, std::string_view alpha, bool class_token, bool probs) {
  check::query_key("correlate", query_, key_);
  CorrelateCall call = links_call(sources, kept, query_.size(0), query_.size(2), k, alpha, class_token, query_);
  FICOCO_VALUE(call.params.alpha != Alpha::kRatio || probs, "correlate", "alpha", "softmax or average with logits",
               "ratio", "use probs, whose values are not negative");
  const Tensor query = call.hold(readable(query_)), key = call.hold(readable(key_));
  call.params.by = probs ? Correlation::kProbs : Correlation::kLogits;
  call.params.query = rows_of(query);
  call.params.key = rows_of(key);
  call.params.width = query.size(3);
  call.params.scale = static_cast<float>(scale);
  return call;
}

inline CorrelateCall correlate_call(const Tensor& attn_, const Tensor& sources, const Tensor& kept, int64_t k,
                                    std::string_view alpha, bool class_token) {
  check::attention_map("correlate", attn_);
  CorrelateCall call = links_call(sources, kept, attn_.size(0), attn_.size(-1), k, alpha, class_token, attn_);
  call.params.by = Correlation::kMap;
  call.params.attn = rows_of(call.hold(readable(attn_)));
  return call;
}

inline CorrelateCall correlate_key_call(const Tensor& key_, const Tensor& sources, const Tensor& kept, int64_t k,
                                        std::string_view alpha, bool class_token) {
  check::key("correlate", key_);
  CorrelateCall call = links_call(sources, kept, key_.size(0), key_.size(2), k, alpha, class_token, key_);
  FICOCO_VALUE(call.params.alpha != Alpha::kRatio, "correlate", "alpha", "softmax or average with keys", "ratio",
               "a cosine can be negative");
  call.params.by = Correlation::kKey;
  call.params.key = rows_of(call.hold(readable(key_)));
  call.params.width = key_.size(3);
  return call;
}

inline std::tuple<Tensor, Tensor> run_correlate(const CorrelateCall& call) {
  Device::of(call.targets).run(call);
  return {call.targets, call.weights};
}

inline std::tuple<Tensor, Tensor> correlate(const Tensor& query, const Tensor& key, const Tensor& sources,
                                            const Tensor& kept, int64_t k, double scale, std::string_view alpha,
                                            bool class_token, bool probs) {
  return run_correlate(correlate_call(query, key, sources, kept, k, scale, alpha, class_token, probs));
}

inline std::tuple<Tensor, Tensor> correlate_map(const Tensor& attn, const Tensor& sources, const Tensor& kept,
                                                int64_t k, std::string_view alpha, bool class_token) {
  return run_correlate(correlate_call(attn, sources, kept, k, alpha, class_token));
}

inline std::tuple<Tensor, Tensor> correlate_key(const Tensor& key, const Tensor& sources, const Tensor& kept, int64_t k,
                                                std::string_view alpha, bool class_token) {
  return run_correlate(correlate_key_call(key, sources, kept, k, alpha, class_token));
}

}  // namespace ficoco
