// match: ToMe's bipartite matching, which does the work of Filter and Correlate.
#pragma once
#include "ops/call.h"
#include "ops/device.h"

namespace ficoco {

struct MatchCall : Call {
  Tensor redundancy, sources, kept, targets, weights;
  MatchParams params;
};

inline MatchCall match_call(const Tensor& key_, int64_t r, bool class_token, bool distill_token) {
  constexpr const char* op = "match";
  check::key(op, key_);
  FICOCO_VALUE(class_token || !distill_token, op, "distill_token", "False without a class token", "True",
               "a distillation token is token 1, after the class token");
  const int64_t b = key_.size(0), n = key_.size(2);
  const int64_t largest = std::max<int64_t>((n - class_token - distill_token) / 2, 0);
  FICOCO_VALUE(r >= 0 && r <= largest, op, "r", check::text("in [0, ", largest, "] for ", n, " tokens"), r,
               check::text("only every other token can leave: the largest legal r is ", largest));
  MatchCall call;
  const Tensor key = call.hold(readable(key_));
  call.redundancy = floats(key, {b, std::max<int64_t>(n - class_token, 0)});
  call.sources = longs(key, {b, r});
  call.kept = longs(key, {b, n - r});
  call.targets = longs(key, {b, r, 1});
  call.weights = floats(key, {b, r, 1});
  call.params = {.key = rows_of(key),
                 .batch = b,
                 .tokens = n,
                 .width = key.size(3),
                 .r = r,
                 .first = class_token,
                 .distill = distill_token,
                 .redundancy = call.redundancy.mutable_data_ptr<float>(),
                 .sources = call.sources.mutable_data_ptr<int64_t>(),
                 .kept = call.kept.mutable_data_ptr<int64_t>(),
                 .targets = call.targets.mutable_data_ptr<int64_t>(),
                 .weights = call.weights.mutable_data_ptr<float>()};
  return call;
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> match(const Tensor& key, int64_t r, bool class_token,
                                                                bool distill_token) {
  const MatchCall call = match_call(key, r, class_token, distill_token);
  Device::of(call.redundancy).run(call);
  return {call.redundancy, call.sources, call.kept, call.targets, call.weights};
}

}  // namespace ficoco
