// What the operators of this folder have in common. Each is a header with its name, which holds
//
//   <Op>Call     the arguments, checked; the results, allocated; and the params that point to both
//   <op>_call()  makes one: no value of a tensor is read, nothing is computed
//   <op>()       what the dispatcher calls: makes a call, has the tensors' device run it, returns the results
//
// Devices implement `run` for every Call (device.h); library.cpp lists the operators.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "ops/checks.h"
#include "params.h"

namespace ficoco {

using at::Tensor;

// `held` keeps alive what the params point to.
struct Call {
  std::vector<Tensor> held;
  const Tensor& hold(const Tensor& t) { return held.emplace_back(t); }
};

inline Dtype dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kHalf: return Dtype::kHalf;
    case at::kBFloat16: return Dtype::kBFloat16;
    default: return Dtype::kFloat;
  }
}

// A tensor whose rows can be read in place; a copy only if the innermost dimension is strided.
inline Tensor readable(const Tensor& t) { return t.size(-1) <= 1 || t.stride(-1) == 1 ? t : t.contiguous(); }

inline Rows rows_of(const Tensor& t) {
  Rows rows{t.const_data_ptr(), dtype_of(t), 1, t.stride(0), 0, t.stride(-2)};
  if (t.dim() == 4) {
    rows.heads = t.size(1);
    rows.stride_h = t.stride(1);
  }
  return rows;
}

inline Tensor floats(const Tensor& like, at::IntArrayRef shape) {
  return at::empty(shape, like.options().dtype(at::kFloat));
}
inline Tensor longs(const Tensor& like, at::IntArrayRef shape) {
  return at::empty(shape, like.options().dtype(at::kLong));
}

inline Alpha alpha_of(std::string_view alpha) {
  const bool known = alpha == "softmax" || alpha == "ratio" || alpha == "average";
  FICOCO_VALUE(known, "correlate", "alpha", "one of softmax, ratio, average", std::string(alpha), "pick one of them");
  return alpha == "softmax" ? Alpha::kSoftmax : alpha == "ratio" ? Alpha::kRatio : Alpha::kAverage;
}

inline const bool* mask_of(Call& call, const std::optional<Tensor>& key_mask) {
  return key_mask ? call.hold(key_mask->contiguous()).const_data_ptr<bool>() : nullptr;
}

inline const float* floats_of(Call& call, const Tensor& t) {
  return call.hold(t.to(at::kFloat).contiguous()).const_data_ptr<float>();
}

}  // namespace ficoco
