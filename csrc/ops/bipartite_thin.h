// bipartite_thin: lists of tokens, thinned round by round of those that repeat another one.
#pragma once
#include "ops/call.h"
#include "ops/device.h"

namespace ficoco {

struct BipartiteThinCall : Call {
  Tensor order, left;
  BipartiteThinParams params;
};

inline BipartiteThinCall bipartite_thin_call(const Tensor& features_, const Tensor& order, int64_t count, int64_t step,
                                             const std::optional<Tensor>& mask) {
  constexpr const char* op = "bipartite_thin";
  check::floating(op, "features", features_);
  FICOCO_VALUE(features_.dim() == 3, op, "features", "(B, N, D)", check::describe(features_),
               "pass one vector a token");
  const int64_t b = features_.size(0), n = features_.size(1);
  FICOCO_VALUE(n <= kMaxSequence, op, "features", check::text("of at most ", kMaxSequence, " tokens"),
               check::describe(features_), "split them");
  const int64_t length = order.dim() == 2 ? std::min(order.size(1), n) : n;
  check::indices(op, "order", order, {b, length}, check::text("(", b, ", L) with L of at most ", n));
  check::same_device(op, "order", order, features_);
  FICOCO_VALUE(count >= 0 && count <= length, op, "count", check::text("in [0, ", length, "], the length of the list"),
               count, "lower it");
  FICOCO_VALUE(step >= 1, op, "step", "at least 1", step, "pass how many tokens leave in a round");
  if (mask) {
    FICOCO_TYPE(mask->scalar_type() == at::kBool, op, "mask", check::text("(", b, ", ", n, ") bool"),
                check::describe(*mask), "True where a token is real");
    FICOCO_VALUE(mask->sizes() == at::IntArrayRef({b, n}), op, "mask", check::text("(", b, ", ", n, ")"),
                 check::describe(*mask), "one flag for each token");
    check::same_device(op, "mask", *mask, features_);
  }
  BipartiteThinCall call;
  const Tensor features = call.hold(readable(features_));
  call.order = call.hold(order.contiguous());
  call.left = longs(features, {b, count});
  call.params = {.features = rows_of(features),
                 .order = call.order.const_data_ptr<int64_t>(),
                 .mask = mask_of(call, mask),
                 .batch = b,
                 .tokens = n,
                 .width = features.size(2),
                 .length = length,
                 .count = count,
                 .step = step,
                 .left = call.left.mutable_data_ptr<int64_t>()};
  return call;
}

inline Tensor bipartite_thin(const Tensor& features, const Tensor& order, int64_t count, int64_t step,
                             const std::optional<Tensor>& mask) {
  const BipartiteThinCall call = bipartite_thin_call(features, order, count, step, mask);
  Device::of(call.left).run(call);
  return call.left;
}

}  // namespace ficoco
