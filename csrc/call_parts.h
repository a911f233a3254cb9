// What the calls are put together from.
#pragma once
#include <ATen/ops/empty.h>

#include <string>

#include "calls.h"
#include "checks.h"

namespace ficoco {

using at::Tensor;

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

}  // namespace ficoco
