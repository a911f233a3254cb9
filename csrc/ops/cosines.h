// cosines: of the features of tokens with other vectors.
#pragma once
#include "ops/call.h"
#include "ops/device.h"

namespace ficoco {

struct CosinesCall : Call {
  Tensor out;
  CosinesParams params;
};

inline CosinesCall cosines_call(const Tensor& features_, const Tensor& things_) {
  constexpr const char* op = "cosines";
  check::floating(op, "features", features_);
  check::floating(op, "things", things_);
  FICOCO_VALUE(features_.dim() == 3, op, "features", "(B, N, D)", check::describe(features_),
               "pass one vector a token");
  const int64_t b = features_.size(0), n = features_.size(1), d = features_.size(2);
  FICOCO_VALUE(things_.dim() == 3 && things_.size(0) == b && things_.size(2) == d, op, "things",
               check::text("(", b, ", R, ", d, ")"), check::describe(things_), "pass vectors as wide as the features");
  FICOCO_TYPE(things_.scalar_type() == features_.scalar_type(), op, "things",
              check::text(features_.scalar_type(), " like features"), check::describe(things_), "convert one of them");
  check::same_device(op, "things", things_, features_);
  FICOCO_VALUE(n <= kMaxSequence && things_.size(1) <= kMaxSequence, op, "features and things",
               check::text("at most ", kMaxSequence), "more", "split them");
  CosinesCall call;
  const Tensor features = call.hold(readable(features_)), things = call.hold(readable(things_));
  call.out = floats(features, {b, n, things.size(1)});
  call.params = {.features = rows_of(features),
                 .things = rows_of(things),
                 .batch = b,
                 .tokens = n,
                 .thing_count = things.size(1),
                 .width = d,
                 .cosines = call.out.mutable_data_ptr<float>()};
  return call;
}

inline Tensor cosines(const Tensor& features, const Tensor& things) {
  const CosinesCall call = cosines_call(features, things);
  Device::of(call.out).run(call);
  return call.out;
}

}  // namespace ficoco
