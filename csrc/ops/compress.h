// compress: merges every source into its targets.
#pragma once
#include "ops/call.h"
#include "ops/device.h"

namespace ficoco {

struct CompressCall : Call {
  Tensor out, size, source_map;
  Tensor sources, kept, targets;  // contiguous
  CompressParams params;
};

inline CompressCall compress_call(const Tensor& tokens_, const Tensor& sources, const Tensor& kept,
                                  const Tensor& targets, const Tensor& weights_, const std::optional<Tensor>& size_,
                                  bool size_weighted) {
  constexpr const char* op = "compress";
  check::floating(op, "tokens", tokens_);
  FICOCO_VALUE(tokens_.dim() == 3, op, "tokens", "(B, N, C)", check::describe(tokens_), "pass hidden states");
  const int64_t b = tokens_.size(0), n = tokens_.size(1), c = tokens_.size(2);
  check::selection(op, b, n, sources, kept);
  const int64_t r = sources.size(1), m = kept.size(1), k = targets.dim() == 3 ? targets.size(2) : 0;
  check::indices(op, "targets", targets, {b, r, k}, check::text("(", b, ", ", r, ", k)"));
  check::floating_or_double(op, "weights", weights_);
  FICOCO_VALUE(weights_.sizes() == targets.sizes(), op, "weights",
               check::text("(", b, ", ", r, ", ", k, ") like targets"), check::describe(weights_), "pass both");
  for (const auto& [name, t] :
       {std::pair{"sources", &sources}, {"kept", &kept}, {"targets", &targets}, {"weights", &weights_}}) {
    check::same_device(op, name, *t, tokens_);
  }
  CompressCall call;
  Tensor size;
  if (size_) {
    check::floating_or_double(op, "size", *size_);
    FICOCO_VALUE(size_->sizes() == at::IntArrayRef({b, n, 1}), op, "size", check::text("(", b, ", ", n, ", 1)"),
                 check::describe(*size_), "one count a token");
    check::same_device(op, "size", *size_, tokens_);
    size = call.hold(size_->to(at::kFloat).contiguous());
  }
  const Tensor tokens = call.hold(readable(tokens_)), weights = call.hold(weights_.to(at::kFloat).contiguous());
  call.sources = sources.contiguous();
  call.kept = kept.contiguous();
  call.targets = targets.contiguous();
  call.out = at::empty({b, m, c}, tokens.options());
  call.size = floats(tokens, {b, m, 1});
  call.source_map = longs(tokens, {b, n});
  call.params = {.tokens = rows_of(tokens),
                 .sources = call.sources.const_data_ptr<int64_t>(),
                 .kept = call.kept.const_data_ptr<int64_t>(),
                 .targets = call.targets.const_data_ptr<int64_t>(),
                 .weights = weights.const_data_ptr<float>(),
                 .size = size.defined() ? size.const_data_ptr<float>() : nullptr,
                 .batch = b,
                 .count = n,
                 .channels = c,
                 .r = r,
                 .kept_count = m,
                 .k = k,
                 .size_weighted = size_weighted,
                 .out = call.out.mutable_data_ptr(),
                 .out_size = call.size.mutable_data_ptr<float>(),
                 .source_map = call.source_map.mutable_data_ptr<int64_t>()};
  return call;
}

inline std::tuple<Tensor, Tensor, Tensor> compress(const Tensor& tokens, const Tensor& sources, const Tensor& kept,
                                                   const Tensor& targets, const Tensor& weights,
                                                   const std::optional<Tensor>& size, bool size_weighted) {
  const CompressCall call = compress_call(tokens, sources, kept, targets, weights, size, size_weighted);
  Device::of(call.out).run(call);
  return {call.out, call.size, call.source_map};
}

}  // namespace ficoco
