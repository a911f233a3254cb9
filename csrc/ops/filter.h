// filter: selects the patches that leave.
#pragma once
#include "ops/call.h"
#include "ops/device.h"

namespace ficoco {

struct FilterSettings {
  int64_t r;
  double lam;
  bool normalize;
  double penalty;
  int64_t window, grid_height, grid_width;
  bool class_token;
};

struct FilterCall : Call {
  Tensor redundancy, sources, kept;
  Tensor ids;  // contiguous; undefined if there are none
  FilterParams params;
};

inline FilterCall filter_call(const Tensor& patch_attention_, const Tensor& class_attention_,
                              const std::optional<Tensor>& ids, const FilterSettings& s) {
  constexpr const char* op = "filter";
  check::floating(op, "patch_attention", patch_attention_);
  FICOCO_VALUE(patch_attention_.dim() == 2, op, "patch_attention", "(B, P)", check::describe(patch_attention_),
               "pass one score a patch");
  const int64_t b = patch_attention_.size(0), p = patch_attention_.size(1);
  FICOCO_VALUE(class_attention_.sizes() == patch_attention_.sizes() &&
                   class_attention_.scalar_type() == patch_attention_.scalar_type(),
               op, "class_attention", check::text("(", b, ", ", p, ") like patch_attention"),
               check::describe(class_attention_), "pass both");
  check::same_device(op, "class_attention", class_attention_, patch_attention_);
  const int64_t largest = std::max<int64_t>(p - 1, 0);
  FICOCO_VALUE(s.r >= 0 && s.r <= largest, op, "r", check::text("in [0, ", largest, "] for ", p, " patches"), s.r,
               "at least one patch stays");
  FICOCO_VALUE(s.penalty >= 1 && s.window >= 1, op, "penalty, window", "at least 1",
               check::text(s.penalty, ", ", s.window), "1 switches the penalty off");
  FilterCall call;
  if (s.penalty != 1) {
    FICOCO_VALUE(s.grid_height > 0 && s.grid_width > 0, op, "grid", "of positive sides",
                 check::text("(", s.grid_height, ", ", s.grid_width, ")"), "pass (height, width)");
    FICOCO_VALUE(s.grid_height <= kMaxCells / s.grid_width, op, "grid", check::text("of at most ", kMaxCells, " cells"),
                 check::text("(", s.grid_height, ", ", s.grid_width, ")"), "pass (height, width) in patches");
    if (ids) {
      check::indices(op, "ids", *ids, {b, p}, check::text("(", b, ", ", p, ")"));
      check::same_device(op, "ids", *ids, patch_attention_);
      call.ids = ids->contiguous();
    } else {
      FICOCO_VALUE(s.grid_height * s.grid_width == p, op, "grid", check::text("of ", p, " cells"),
                   check::text("(", s.grid_height, ", ", s.grid_width, ")"), "pass the grid or penalty=1");
    }
  }
  const Tensor patch_attention = call.hold(patch_attention_.to(at::kFloat).contiguous());
  const Tensor class_attention = call.hold(class_attention_.to(at::kFloat).contiguous());
  call.redundancy = floats(patch_attention, {b, p});
  call.sources = longs(patch_attention, {b, s.r});
  call.kept = longs(patch_attention, {b, p + s.class_token - s.r});
  call.params = {.patch_attention = patch_attention.const_data_ptr<float>(),
                 .class_attention = class_attention.const_data_ptr<float>(),
                 .ids = call.ids.defined() ? call.ids.const_data_ptr<int64_t>() : nullptr,
                 .batch = b,
                 .patches = p,
                 .r = s.r,
                 .first = s.class_token,
                 .lam = static_cast<float>(s.lam),
                 .penalty = static_cast<float>(s.penalty),
                 .normalize = s.normalize,
                 .window = s.window,
                 .grid_height = s.grid_height,
                 .grid_width = s.grid_width,
                 .redundancy = call.redundancy.mutable_data_ptr<float>(),
                 .sources = call.sources.mutable_data_ptr<int64_t>(),
                 .kept = call.kept.mutable_data_ptr<int64_t>()};
  return call;
}

inline std::tuple<Tensor, Tensor, Tensor> filter(const Tensor& patch_attention, const Tensor& class_attention,
                                                 const std::optional<Tensor>& ids, int64_t r, double lam,
                                                 bool normalize, double penalty, int64_t window, int64_t grid_height,
                                                 int64_t grid_width, bool class_token) {
  const FilterCall call = filter_call(patch_attention, class_attention, ids,
                                      {r, lam, normalize, penalty, window, grid_height, grid_width, class_token});
  Device::of(call.redundancy).run(call);
  return {call.redundancy, call.sources, call.kept};
}

}  // namespace ficoco
