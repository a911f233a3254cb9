// greedy_cover: tokens that stay, picked one by one for what each covers that those before do not.
#pragma once
#include "ops/call.h"
#include "ops/device.h"

namespace ficoco {

struct GreedyCoverCall : Call {
  Tensor order, gains;
  GreedyCoverParams params;
};

inline GreedyCoverCall greedy_cover_call(const Tensor& cover_, int64_t count, const std::optional<Tensor>& mask) {
  constexpr const char* op = "greedy_cover";
  check::floating(op, "cover", cover_);
  FICOCO_VALUE(cover_.dim() == 3, op, "cover", "(B, N, R)", check::describe(cover_),
               "pass by how much each token covers each thing");
  const int64_t b = cover_.size(0), n = cover_.size(1);
  FICOCO_VALUE(count >= 0 && count <= n, op, "count", check::text("in [0, ", n, "], the number of tokens"), count,
               "lower it");
  FICOCO_VALUE(n <= kMaxSequence && cover_.size(2) <= kMaxSequence, op, "cover",
               check::text("of at most ", kMaxSequence, " tokens and things"), check::describe(cover_), "split them");
  GreedyCoverCall call;
  if (mask) {
    FICOCO_TYPE(mask->scalar_type() == at::kBool, op, "mask", check::text("(", b, ", ", n, ") bool"),
                check::describe(*mask), "True where a token is real");
    FICOCO_VALUE(mask->sizes() == at::IntArrayRef({b, n}), op, "mask", check::text("(", b, ", ", n, ")"),
                 check::describe(*mask), "one flag for each token");
    check::same_device(op, "mask", *mask, cover_);
  }
  const Tensor cover = call.hold(readable(cover_.to(at::kFloat)));
  call.order = longs(cover, {b, count});
  call.gains = floats(cover, {b, count});
  call.params = {.cover = rows_of(cover),
                 .mask = mask_of(call, mask),
                 .batch = b,
                 .tokens = n,
                 .things = cover.size(2),
                 .count = count,
                 .order = call.order.mutable_data_ptr<int64_t>(),
                 .gains = call.gains.mutable_data_ptr<float>()};
  return call;
}

inline std::tuple<Tensor, Tensor> greedy_cover(const Tensor& cover, int64_t count, const std::optional<Tensor>& mask) {
  const GreedyCoverCall call = greedy_cover_call(cover, count, mask);
  Device::of(call.order).run(call);
  return {call.order, call.gains};
}

}  // namespace ficoco
