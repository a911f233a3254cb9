// to_sequence: a selection among the visual tokens of a sequence, as one among all its tokens.
#pragma once
#include "ops/call.h"
#include "ops/device.h"

namespace ficoco {

struct ToSequenceCall : Call {
  Tensor sources, kept, targets, visual;
  Tensor given_targets;  // contiguous
  ToSequenceParams params;
};

inline ToSequenceCall to_sequence_call(const Tensor& visual, const Tensor& sources, const Tensor& kept,
                                       const Tensor& targets, int64_t tokens) {
  constexpr const char* op = "to_sequence";
  const int64_t b = visual.dim() == 2 ? visual.size(0) : 0, n = visual.dim() == 2 ? visual.size(1) : 0;
  check::indices(op, "visual", visual, {b, n}, "(B, n)");
  check::selection(op, b, n, sources, kept);
  const int64_t r = sources.size(1), k = targets.dim() == 3 ? targets.size(2) : 0;
  check::indices(op, "targets", targets, {b, r, k}, check::text("(", b, ", ", r, ", k)"));
  check::same_device(op, "sources", sources, visual);
  check::same_device(op, "kept", kept, visual);
  check::same_device(op, "targets", targets, visual);
  FICOCO_VALUE(tokens >= n, op, "tokens", check::text("at least ", n, ", the number of visual tokens"), tokens,
               "pass the length of the sequence");
  FICOCO_VALUE(tokens <= kMaxSequence, op, "tokens", check::text("at most ", kMaxSequence), tokens,
               "pass the length of the sequence");
  ToSequenceCall call;
  call.given_targets = targets.contiguous();
  call.sources = longs(visual, {b, r});
  call.kept = longs(visual, {b, tokens - r});
  call.targets = longs(visual, {b, r, k});
  call.visual = longs(visual, {b, n - r});
  call.params = {.visual = call.hold(visual.contiguous()).const_data_ptr<int64_t>(),
                 .sources = call.hold(sources.contiguous()).const_data_ptr<int64_t>(),
                 .kept = call.hold(kept.contiguous()).const_data_ptr<int64_t>(),
                 .targets = call.given_targets.const_data_ptr<int64_t>(),
                 .batch = b,
                 .count = n,
                 .r = r,
                 .k = k,
                 .tokens = tokens,
                 .source_positions = call.sources.mutable_data_ptr<int64_t>(),
                 .kept_positions = call.kept.mutable_data_ptr<int64_t>(),
                 .target_indices = call.targets.mutable_data_ptr<int64_t>(),
                 .visual_positions = call.visual.mutable_data_ptr<int64_t>()};
  return call;
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor> to_sequence(const Tensor& visual, const Tensor& sources,
                                                              const Tensor& kept, const Tensor& targets,
                                                              int64_t tokens) {
  const ToSequenceCall call = to_sequence_call(visual, sources, kept, targets, tokens);
  Device::of(call.sources).run(call);
  return {call.sources, call.kept, call.targets, call.visual};
}

}  // namespace ficoco
