// top_of_segments: of every segment of the tokens the largest scores, as many as it may keep.
#pragma once
#include "ops/call.h"
#include "ops/device.h"

namespace ficoco {

struct TopOfSegmentsCall : Call {
  Tensor kept;
  Tensor segments;  // contiguous
  TopOfSegmentsParams params;
};

inline TopOfSegmentsCall top_of_segments_call(const Tensor& scores, const Tensor& segments, const Tensor& counts,
                                              int64_t total) {
  constexpr const char* op = "top_of_segments";
  check::floating(op, "scores", scores);
  FICOCO_VALUE(scores.dim() == 2, op, "scores", "(B, N)", check::describe(scores), "pass one score a token");
  const int64_t b = scores.size(0), n = scores.size(1);
  const std::string some = check::text("(", n, ",) or (", b, ", ", n, ") int64"),
                    each = check::text("(", b, ", G) int64");
  FICOCO_TYPE(segments.scalar_type() == at::kLong, op, "segments", some, check::describe(segments),
              "pass the segment of each token");
  FICOCO_VALUE(segments.sizes() == at::IntArrayRef({n}) || segments.sizes() == at::IntArrayRef({b, n}), op, "segments",
               some, check::describe(segments), "pass the segment of each token");
  FICOCO_TYPE(counts.scalar_type() == at::kLong, op, "counts", each, check::describe(counts),
              "pass how many tokens stay of each segment");
  FICOCO_VALUE(counts.dim() == 2 && counts.size(0) == b, op, "counts", each, check::describe(counts),
               "pass how many tokens stay of each segment");
  check::same_device(op, "segments", segments, scores);
  check::same_device(op, "counts", counts, scores);
  FICOCO_VALUE(total >= 0 && total <= n, op, "total", check::text("in [0, ", n, "], the number of tokens"), total,
               "pass the sum of counts");
  FICOCO_VALUE(n <= kMaxSequence && counts.size(1) <= kMaxSequence, op, "scores",
               check::text("of at most ", kMaxSequence, " tokens and segments"), check::describe(scores), "split them");
  TopOfSegmentsCall call;
  call.segments = segments.contiguous();
  call.kept = longs(scores, {b, total});
  call.params = {.scores = floats_of(call, scores),
                 .segments = call.segments.const_data_ptr<int64_t>(),
                 .segment_stride = segments.dim() == 2 ? n : 0,
                 .counts = call.hold(counts.contiguous()).const_data_ptr<int64_t>(),
                 .batch = b,
                 .tokens = n,
                 .groups = counts.size(1),
                 .total = total,
                 .kept = call.kept.mutable_data_ptr<int64_t>()};
  return call;
}

inline Tensor top_of_segments(const Tensor& scores, const Tensor& segments, const Tensor& counts, int64_t total) {
  const TopOfSegmentsCall call = top_of_segments_call(scores, segments, counts, total);
  Device::of(call.kept).run(call);
  return call.kept;
}

}  // namespace ficoco
