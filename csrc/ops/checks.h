// Argument checks of the operators, the C++ twin of ficoco_ext/ops/checks.py: op, argument, what was wanted, what was
// given, and what to do. They look at shapes, dtypes and devices; values are read only where an index could leave its
// tensor.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <initializer_list>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>

namespace ficoco::check {

inline std::string describe(const at::Tensor& t) {
  std::ostringstream out;
  out << "(";
  for (int64_t i = 0; i < t.dim(); ++i) out << (i ? ", " : "") << t.size(i);
  out << ") " << t.scalar_type() << " on " << t.device();
  return out.str();
}

#define FICOCO_VALUE(ok, op, argument, wanted, got, remedy) \
  TORCH_CHECK_VALUE(ok, "ficoco::", op, ": ", argument, " must be ", wanted, ", got ", got, "; ", remedy)
#define FICOCO_TYPE(ok, op, argument, wanted, got, remedy) \
  TORCH_CHECK_TYPE(ok, "ficoco::", op, ": ", argument, " must be ", wanted, ", got ", got, "; ", remedy)

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

inline void floating(const char* op, const char* argument, const at::Tensor& t) {
  const auto type = t.scalar_type();
  FICOCO_TYPE(type == at::kFloat || type == at::kHalf || type == at::kBFloat16, op, argument,
              "float32, float16 or bfloat16", describe(t),
              "convert it first, or call ficoco_ext.ops.reference for another precision");
}

// As `floating`, for small operands that are converted to float32 anyway.
inline void floating_or_double(const char* op, const char* argument, const at::Tensor& t) {
  if (t.scalar_type() != at::kDouble) floating(op, argument, t);
}

inline void indices(const char* op, const char* argument, const at::Tensor& t, at::IntArrayRef shape,
                    const std::string& wanted) {
  FICOCO_TYPE(t.scalar_type() == at::kLong, op, argument, wanted + " int64", describe(t),
              "pass what the previous stage returned");
  FICOCO_VALUE(t.sizes() == shape, op, argument, wanted + " int64", describe(t),
               "pass what the previous stage returned");
}

inline void same_device(const char* op, const char* argument, const at::Tensor& t, const at::Tensor& like) {
  FICOCO_VALUE(t.device() == like.device(), op, argument, text("on ", like.device()), describe(t),
               "move it to the device of the others");
}

// `cached`: there may be more keys than queries.
inline void query_key(const char* op, const at::Tensor& query, const at::Tensor& key, bool cached = false) {
  floating(op, "query", query);
  floating(op, "key", key);
  FICOCO_VALUE(query.dim() == 4, op, "query", "(B, H, N, d)", describe(query), "split the heads before calling");
  FICOCO_VALUE(key.dim() == 4, op, "key", "(B, Hk, N, d)", describe(key), "split the heads before calling");
  FICOCO_TYPE(key.scalar_type() == query.scalar_type(), op, "key", text(query.scalar_type(), " like query"),
              describe(key), "convert one of them");
  const bool fits =
      key.size(0) == query.size(0) && (key.size(2) == query.size(2) || (cached && key.size(2) > query.size(2))) &&
      key.size(3) == query.size(3) && key.size(1) > 0 && query.size(1) > 0 && query.size(1) % key.size(1) == 0;
  FICOCO_VALUE(fits, op, "key",
               text("(", query.size(0), ", Hk, ", query.size(2), cached ? " or more" : "", ", ", query.size(3),
                    ") with Hk dividing ", query.size(1)),
               describe(key), "query and key come from the same layer");
  same_device(op, "key", key, query);
}

inline void correlation(std::string_view by) {
  FICOCO_VALUE(by == "logits" || by == "probs" || by == "key", "reduce", "correlation", "one of logits, probs, key",
               std::string(by), "pick one of them");
}

inline void key(const char* op, const at::Tensor& key) {
  floating(op, "key", key);
  FICOCO_VALUE(key.dim() == 4 && key.size(1) > 0, op, "key", "(B, Hk, N, d) with Hk >= 1", describe(key),
               "split the heads before calling");
}

inline void attention_map(const char* op, const at::Tensor& attn) {
  floating(op, "attn", attn);
  const bool fits = (attn.dim() == 3 || attn.dim() == 4) && attn.size(-1) == attn.size(-2) && attn.size(1) > 0;
  FICOCO_VALUE(fits, op, "attn", "(B, H, N, N) or (B, N, N)", describe(attn),
               "pass one layer's attention, class token included");
}

inline void has_patches(const char* op, const char* argument, const at::Tensor& t, int64_t tokens, bool class_token) {
  FICOCO_VALUE(tokens > class_token, op, argument, text("of at least ", 1 + class_token, " tokens"), describe(t),
               "there is no patch to reduce");
}

inline void selection(const char* op, int64_t batch, int64_t tokens, const at::Tensor& sources,
                      const at::Tensor& kept) {
  const int64_t r = sources.dim() == 2 ? sources.size(1) : 0;
  indices(op, "sources", sources, {batch, r}, text("(", batch, ", r)"));
  indices(op, "kept", kept, {batch, tokens - r}, text("(", batch, ", ", tokens - r, ")"));
}

// Query, key, mask and lists of tokens, all of one decoder layer.
inline void chosen_tokens(const char* op, const at::Tensor& query, const at::Tensor& key,
                          const std::optional<at::Tensor>& key_mask,
                          std::initializer_list<std::pair<const char*, const at::Tensor*>> lists) {
  query_key(op, query, key, true);
  const int64_t b = query.size(0), t = key.size(2);
  for (const auto& [name, index] : lists) {
    const int64_t count = index->dim() == 2 ? index->size(1) : 0;
    indices(op, name, *index, {b, count}, text("(", b, ", count)"));
    same_device(op, name, *index, query);
  }
  if (!key_mask) return;
  FICOCO_TYPE(key_mask->scalar_type() == at::kBool, op, "key_mask", text("(", b, ", ", t, ") bool"),
              describe(*key_mask), "True where a token is real");
  FICOCO_VALUE(key_mask->sizes() == at::IntArrayRef({b, t}), op, "key_mask", text("(", b, ", ", t, ")"),
               describe(*key_mask), "one flag for each key");
  same_device(op, "key_mask", *key_mask, query);
}

// Every index lies in [first, limit): read before any kernel follows it.
inline void in_range(const char* op, const char* argument, const at::Tensor& index, int64_t limit, int64_t first = 0) {
  const int64_t* values = index.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < index.numel(); ++i) {
    FICOCO_VALUE(values[i] >= first && values[i] < limit, op, argument, text("in [", first, ", ", limit, ")"),
                 values[i], "pass what the previous stage returned");
  }
}

// Each row ascends within [0, limit): read before any kernel follows it.
inline void ascending(const char* op, const char* argument, const at::Tensor& index, int64_t limit) {
  const int64_t* values = index.const_data_ptr<int64_t>();
  const int64_t count = index.size(-1), all = index.numel();
  for (int64_t i = 0; i < all; ++i) {
    const int64_t least = i % count == 0 ? 0 : values[i - 1] + 1;
    FICOCO_VALUE(values[i] >= least && limit > values[i], op, argument, text("ascending within [0, ", limit, ")"),
                 text(values[i], " at index ", i % count, " of row ", i / count), "pass where the visual tokens are");
  }
}

}  // namespace ficoco::check
