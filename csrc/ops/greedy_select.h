// greedy_select: tokens that stay, picked one by one for what each adds to those before.
#pragma once
#include "ops/call.h"
#include "ops/device.h"

namespace ficoco {

struct GreedySelectCall : Call {
  Tensor order, gains;
  GreedySelectParams params;
};

inline Objective objective_of(std::string_view objective) {
  const bool known = objective == "max-min" || objective == "coverage" || objective == "log-det" || objective == "mmr";
  FICOCO_VALUE(known, "greedy_select", "objective", "one of max-min, coverage, log-det, mmr", std::string(objective),
               "pick one of them");
  return objective == "max-min"    ? Objective::kMaxMin
         : objective == "coverage" ? Objective::kCoverage
         : objective == "log-det"  ? Objective::kLogDet
                                   : Objective::kMmr;
}

inline GreedySelectCall greedy_select_call(const Tensor& features_, int64_t count, std::string_view objective,
                                           const std::optional<Tensor>& saliency, const std::optional<Tensor>& mask,
                                           double trade) {
  constexpr const char* op = "greedy_select";
  check::floating(op, "features", features_);
  FICOCO_VALUE(features_.dim() == 3, op, "features", "(B, N, D)", check::describe(features_),
               "pass one vector a token");
  const int64_t b = features_.size(0), n = features_.size(1);
  GreedySelectCall call;
  call.params.objective = objective_of(objective);
  FICOCO_VALUE(count >= 0 && count <= n, op, "count", check::text("in [0, ", n, "], the number of tokens"), count,
               "lower it");
  FICOCO_VALUE(n <= kMaxSequence, op, "features", check::text("of at most ", kMaxSequence, " tokens"),
               check::describe(features_), "split them");
  FICOCO_VALUE(trade >= 0 && trade <= 1, op, "trade", "in [0, 1]", trade,
               "1 looks at saliency alone, 0 at similarity alone");
  FICOCO_VALUE(saliency || call.params.objective != Objective::kMmr, op, "saliency",
               check::text("(", b, ", ", n, ") for mmr"), "None", "pass it, or take max-min");
  const auto fits = [&](const char* name, const Tensor& t, const char* remedy) {
    FICOCO_VALUE(t.sizes() == at::IntArrayRef({b, n}), op, name, check::text("(", b, ", ", n, ")"), check::describe(t),
                 remedy);
    check::same_device(op, name, t, features_);
  };
  if (saliency) {
    check::floating_or_double(op, "saliency", *saliency);
    fits("saliency", *saliency, "one a token");
  }
  if (mask) {
    FICOCO_TYPE(mask->scalar_type() == at::kBool, op, "mask", check::text("(", b, ", ", n, ") bool"),
                check::describe(*mask), "True where a token is real");
    fits("mask", *mask, "one flag for each token");
  }
  const Tensor features = call.hold(readable(features_));
  call.order = longs(features, {b, count});
  call.gains = floats(features, {b, count});
  call.params = {.features = rows_of(features),
                 .saliency = saliency ? floats_of(call, *saliency) : nullptr,
                 .mask = mask_of(call, mask),
                 .batch = b,
                 .tokens = n,
                 .width = features.size(2),
                 .count = count,
                 .objective = call.params.objective,
                 .trade = static_cast<float>(trade),
                 .order = call.order.mutable_data_ptr<int64_t>(),
                 .gains = call.gains.mutable_data_ptr<float>()};
  return call;
}

inline std::tuple<Tensor, Tensor> greedy_select(const Tensor& features, int64_t count, std::string_view objective,
                                                const std::optional<Tensor>& saliency,
                                                const std::optional<Tensor>& mask, double trade) {
  const GreedySelectCall call = greedy_select_call(features, count, objective, saliency, mask, trade);
  Device::of(call.order).run(call);
  return {call.order, call.gains};
}

}  // namespace ficoco
