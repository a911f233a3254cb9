// received_from: what visual tokens receive from chosen rows of text, the sum and the largest.
#pragma once
#include "ops/call.h"
#include "ops/device.h"

namespace ficoco {

struct ReceivedFromCall : Call {
  Tensor total, peak;
  Tensor visual, text;  // contiguous
  ReceivedFromParams params;
};

inline ReceivedFromCall received_from_call(const Tensor& query_, const Tensor& key_, const Tensor& visual,
                                           const Tensor& text, const Tensor& chosen,
                                           const std::optional<Tensor>& key_mask, double scale, bool probs,
                                           bool causal) {
  constexpr const char* op = "received_from";
  check::chosen_tokens(op, query_, key_, key_mask, {{"visual", &visual}, {"text", &text}});
  const int64_t b = query_.size(0), r = text.size(1);
  FICOCO_TYPE(chosen.scalar_type() == at::kBool, op, "chosen", check::text("(", b, ", ", r, ") bool"),
              check::describe(chosen), "True where a row of text counts");
  FICOCO_VALUE(chosen.sizes() == at::IntArrayRef({b, r}), op, "chosen", check::text("(", b, ", ", r, ")"),
               check::describe(chosen), "one flag for each of text");
  check::same_device(op, "chosen", chosen, query_);
  ReceivedFromCall call;
  const Tensor query = call.hold(readable(query_)), key = call.hold(readable(key_));
  call.visual = visual.contiguous();
  call.text = text.contiguous();
  call.total = floats(query, {b, visual.size(1)});
  call.peak = floats(query, {b, visual.size(1)});
  call.params = {.query = rows_of(query),
                 .key = rows_of(key),
                 .visual = call.visual.const_data_ptr<int64_t>(),
                 .text = call.text.const_data_ptr<int64_t>(),
                 .chosen = mask_of(call, chosen),
                 .key_mask = mask_of(call, key_mask),
                 .batch = b,
                 .keys = key.size(2),
                 .offset = key.size(2) - query.size(2),
                 .width = query.size(3),
                 .count = visual.size(1),
                 .text_count = r,
                 .scale = static_cast<float>(scale),
                 .probs = probs,
                 .causal = causal,
                 .total = call.total.mutable_data_ptr<float>(),
                 .peak = call.peak.mutable_data_ptr<float>()};
  return call;
}

inline std::tuple<Tensor, Tensor> received_from(const Tensor& query, const Tensor& key, const Tensor& visual,
                                                const Tensor& text, const Tensor& chosen,
                                                const std::optional<Tensor>& key_mask, double scale, bool probs,
                                                bool causal) {
  const ReceivedFromCall call = received_from_call(query, key, visual, text, chosen, key_mask, scale, probs, causal);
  Device::of(call.total).run(call);
  return {call.total, call.peak};
}

}  // namespace ficoco
