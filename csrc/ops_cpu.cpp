// The CPU side of the operators: check, allocate, fill the params, call the kernel. The schemas are in
// ficoco_ext/ops.py.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "checks.h"
#include "cpu/kernels.h"

namespace ficoco {
namespace {

using at::Tensor;

Dtype dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kHalf: return Dtype::kHalf;
    case at::kBFloat16: return Dtype::kBFloat16;
    default: return Dtype::kFloat;
  }
}

// A tensor whose rows can be read in place; a copy only if the innermost dimension is strided.
Tensor readable(const Tensor& t) { return t.size(-1) <= 1 || t.stride(-1) == 1 ? t : t.contiguous(); }

Rows rows_of(const Tensor& t) {
  Rows rows{t.const_data_ptr(), dtype_of(t), 1, t.stride(0), 0, t.stride(-2)};
  if (t.dim() == 4) {
    rows.heads = t.size(1);
    rows.stride_h = t.stride(1);
  }
  return rows;
}

Tensor floats(const Tensor& like, at::IntArrayRef shape) { return at::empty(shape, like.options().dtype(at::kFloat)); }
Tensor longs(const Tensor& like, at::IntArrayRef shape) { return at::empty(shape, like.options().dtype(at::kLong)); }

std::tuple<Tensor, Tensor> attention_stats(const Tensor& query_, const Tensor& key_, double scale, bool class_token,
                                           bool probs, bool column, bool patches) {
  constexpr const char* op = "attention_stats";
  check::query_key(op, query_, key_);
  check::has_patches(op, "query", query_, query_.size(2), class_token);
  const Tensor query = readable(query_), key = readable(key_);
  const int64_t b = query.size(0), n = query.size(2), p = n - class_token;
  Tensor class_attention = floats(query, {b, p}), patch_attention = floats(query, {b, p});
  if (!patches) patch_attention.zero_();
  attention_stats_cpu({.query = rows_of(query),
                       .key = rows_of(key),
                       .batch = b,
                       .tokens = n,
                       .width = query.size(3),
                       .first = class_token,
                       .scale = static_cast<float>(scale),
                       .probs = probs,
                       .column = column,
                       .patches = patches,
                       .class_attention = class_attention.mutable_data_ptr<float>(),
                       .patch_attention = patch_attention.mutable_data_ptr<float>()});
  return {class_attention, patch_attention};
}

std::tuple<Tensor, Tensor> attention_stats_map(const Tensor& attn_, bool class_token, bool column, bool patches) {
  constexpr const char* op = "attention_stats";
  check::attention_map(op, attn_);
  check::has_patches(op, "attn", attn_, attn_.size(-1), class_token);
  const Tensor attn = readable(attn_);
  const int64_t b = attn.size(0), n = attn.size(-1), p = n - class_token;
  Tensor class_attention = floats(attn, {b, p}), patch_attention = floats(attn, {b, p});
  if (!patches) patch_attention.zero_();
  attention_stats_map_cpu({.attn = rows_of(attn),
                           .batch = b,
                           .tokens = n,
                           .first = class_token,
                           .column = column,
                           .patches = patches,
                           .class_attention = class_attention.mutable_data_ptr<float>(),
                           .patch_attention = patch_attention.mutable_data_ptr<float>()});
  return {class_attention, patch_attention};
}

std::tuple<Tensor, Tensor, Tensor> filter(const Tensor& patch_attention_, const Tensor& class_attention_,
                                          const std::optional<Tensor>& ids_, int64_t r, double lam, bool normalize,
                                          double penalty, int64_t window, int64_t grid_height, int64_t grid_width,
                                          bool class_token) {
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
  FICOCO_VALUE(r >= 0 && r <= largest, op, "r", check::text("in [0, ", largest, "] for ", p, " patches"), r,
               "at least one patch stays");
  FICOCO_VALUE(penalty >= 1 && window >= 1, op, "penalty, window", "at least 1", check::text(penalty, ", ", window),
               "1 switches the penalty off");
  Tensor ids;
  if (penalty != 1) {
    FICOCO_VALUE(grid_height > 0 && grid_width > 0, op, "grid", "of positive sides",
                 check::text("(", grid_height, ", ", grid_width, ")"), "pass (height, width)");
    if (ids_) {
      check::indices(op, "ids", *ids_, {b, p}, check::text("(", b, ", ", p, ")"));
      check::same_device(op, "ids", *ids_, patch_attention_);
      ids = ids_->contiguous();
      check::in_range(op, "ids", ids, grid_height * grid_width);
    } else {
      FICOCO_VALUE(grid_height * grid_width == p, op, "grid", check::text("of ", p, " cells"),
                   check::text("(", grid_height, ", ", grid_width, ")"), "pass the grid or penalty=1");
    }
  }
  const Tensor patch_attention = patch_attention_.to(at::kFloat).contiguous();
  const Tensor class_attention = class_attention_.to(at::kFloat).contiguous();
  Tensor redundancy = floats(patch_attention, {b, p}), sources = longs(redundancy, {b, r});
  Tensor kept = longs(redundancy, {b, p + class_token - r});
  const bool finite = filter_cpu({.patch_attention = patch_attention.const_data_ptr<float>(),
                                  .class_attention = class_attention.const_data_ptr<float>(),
                                  .ids = ids.defined() ? ids.const_data_ptr<int64_t>() : nullptr,
                                  .batch = b,
                                  .patches = p,
                                  .r = r,
                                  .first = class_token,
                                  .lam = static_cast<float>(lam),
                                  .penalty = static_cast<float>(penalty),
                                  .normalize = normalize,
                                  .window = window,
                                  .grid_height = grid_height,
                                  .grid_width = grid_width,
                                  .redundancy = redundancy.mutable_data_ptr<float>(),
                                  .sources = sources.mutable_data_ptr<int64_t>(),
                                  .kept = kept.mutable_data_ptr<int64_t>()});
  FICOCO_VALUE(finite, op, "redundancy", "finite", "NaN or infinity among the scores",
               "check the attention it is made of");
  return {redundancy, sources, kept};
}

// The checked selection as contiguous tensors, and room for what Correlate returns.
struct Linking {
  Tensor sources, kept, targets, weights;
  Links links;
};

Linking link(const Tensor& sources, const Tensor& kept, int64_t batch, int64_t tokens, int64_t k,
             std::string_view alpha, bool class_token, const Tensor& like) {
  constexpr const char* op = "correlate";
  check::selection(op, batch, tokens, sources, kept);
  check::same_device(op, "sources", sources, like);
  check::same_device(op, "kept", kept, like);
  const int64_t candidates = std::max<int64_t>(kept.size(1) - class_token, 0);
  FICOCO_VALUE(k >= 0 && k <= candidates, op, "k", check::text("in [0, ", candidates, "], the number of kept patches"),
               k, "lower k or r");
  const bool known = alpha == "softmax" || alpha == "ratio" || alpha == "average";
  FICOCO_VALUE(known, op, "alpha", "one of softmax, ratio, average", std::string(alpha), "pick one of them");
  const int64_t r = sources.size(1);
  Linking out{sources.contiguous(), kept.contiguous(), longs(like, {batch, r, k}), floats(like, {batch, r, k}), {}};
  check::in_range(op, "sources", out.sources, tokens);
  check::in_range(op, "kept", out.kept, tokens);
  out.links = {.sources = out.sources.const_data_ptr<int64_t>(),
               .kept = out.kept.const_data_ptr<int64_t>(),
               .batch = batch,
               .tokens = tokens,
               .r = r,
               .kept_count = kept.size(1),
               .k = k,
               .first = class_token,
               .alpha = alpha == "softmax" ? Alpha::kSoftmax
                        : alpha == "ratio" ? Alpha::kRatio
                                           : Alpha::kAverage,
               .targets = out.targets.mutable_data_ptr<int64_t>(),
               .weights = out.weights.mutable_data_ptr<float>()};
  return out;
}

std::tuple<Tensor, Tensor> finish(const Linking& linking, Fault fault) {
  FICOCO_VALUE(fault != Fault::kNotFinite, "correlate", "correlations", "finite", "NaN or infinity among them",
               "check the attention they are made of");
  FICOCO_VALUE(fault != Fault::kNegativeRatio, "correlate", "attn", "non-negative for alpha='ratio'",
               "a negative correlation", "use softmax");
  return {linking.targets, linking.weights};
}

std::tuple<Tensor, Tensor> correlate(const Tensor& query_, const Tensor& key_, const Tensor& sources,
                                     const Tensor& kept, int64_t k, double scale, std::string_view alpha,
                                     bool class_token, bool probs) {
  check::query_key("correlate", query_, key_);
  const Tensor query = readable(query_), key = readable(key_);
  Linking l = link(sources, kept, query.size(0), query.size(2), k, alpha, class_token, query);
  FICOCO_VALUE(l.links.alpha != Alpha::kRatio || probs, "correlate", "alpha", "softmax or average with logits", "ratio",
               "use probs, whose values are not negative");
  return finish(l,
                correlate_cpu(l.links, rows_of(query), rows_of(key), query.size(3), static_cast<float>(scale), probs));
}

std::tuple<Tensor, Tensor> correlate_map(const Tensor& attn_, const Tensor& sources, const Tensor& kept, int64_t k,
                                         std::string_view alpha, bool class_token) {
  check::attention_map("correlate", attn_);
  const Tensor attn = readable(attn_);
  Linking l = link(sources, kept, attn.size(0), attn.size(-1), k, alpha, class_token, attn);
  return finish(l, correlate_map_cpu(l.links, rows_of(attn)));
}

std::tuple<Tensor, Tensor> correlate_key(const Tensor& key_, const Tensor& sources, const Tensor& kept, int64_t k,
                                         std::string_view alpha, bool class_token) {
  check::key("correlate", key_);
  const Tensor key = readable(key_);
  Linking l = link(sources, kept, key.size(0), key.size(2), k, alpha, class_token, key);
  FICOCO_VALUE(l.links.alpha != Alpha::kRatio, "correlate", "alpha", "softmax or average with keys", "ratio",
               "a cosine can be negative");
  return finish(l, correlate_key_cpu(l.links, rows_of(key), key.size(3)));
}

std::tuple<Tensor, Tensor, Tensor> compress(const Tensor& tokens_, const Tensor& sources_, const Tensor& kept_,
                                            const Tensor& targets_, const Tensor& weights_,
                                            const std::optional<Tensor>& size_, bool size_weighted) {
  constexpr const char* op = "compress";
  check::floating(op, "tokens", tokens_);
  FICOCO_VALUE(tokens_.dim() == 3, op, "tokens", "(B, N, C)", check::describe(tokens_), "pass hidden states");
  const int64_t b = tokens_.size(0), n = tokens_.size(1), c = tokens_.size(2);
  check::selection(op, b, n, sources_, kept_);
  const int64_t r = sources_.size(1), m = kept_.size(1), k = targets_.dim() == 3 ? targets_.size(2) : 0;
  check::indices(op, "targets", targets_, {b, r, k}, check::text("(", b, ", ", r, ", k)"));
  check::floating_or_double(op, "weights", weights_);
  FICOCO_VALUE(weights_.sizes() == targets_.sizes(), op, "weights",
               check::text("(", b, ", ", r, ", ", k, ") like targets"), check::describe(weights_), "pass both");
  for (const auto& [name, t] :
       {std::pair{"sources", &sources_}, {"kept", &kept_}, {"targets", &targets_}, {"weights", &weights_}}) {
    check::same_device(op, name, *t, tokens_);
  }
  Tensor size;
  if (size_) {
    check::floating_or_double(op, "size", *size_);
    FICOCO_VALUE(size_->sizes() == at::IntArrayRef({b, n, 1}), op, "size", check::text("(", b, ", ", n, ", 1)"),
                 check::describe(*size_), "one count a token");
    check::same_device(op, "size", *size_, tokens_);
    size = size_->to(at::kFloat).contiguous();
  }
  const Tensor tokens = readable(tokens_), sources = sources_.contiguous(), kept = kept_.contiguous();
  const Tensor targets = targets_.contiguous(), weights = weights_.to(at::kFloat).contiguous();
  check::in_range(op, "sources", sources, n);
  check::in_range(op, "kept", kept, n);
  check::in_range(op, "targets", targets, m);
  Tensor out = at::empty({b, m, c}, tokens.options()), out_size = floats(tokens, {b, m, 1});
  Tensor source_map = longs(tokens, {b, n});
  compress_cpu({.tokens = rows_of(tokens),
                .sources = sources.const_data_ptr<int64_t>(),
                .kept = kept.const_data_ptr<int64_t>(),
                .targets = targets.const_data_ptr<int64_t>(),
                .weights = weights.const_data_ptr<float>(),
                .size = size.defined() ? size.const_data_ptr<float>() : nullptr,
                .batch = b,
                .count = n,
                .channels = c,
                .r = r,
                .kept_count = m,
                .k = k,
                .size_weighted = size_weighted,
                .out = out.mutable_data_ptr(),
                .out_size = out_size.mutable_data_ptr<float>(),
                .source_map = source_map.mutable_data_ptr<int64_t>()});
  return {out, out_size, source_map};
}

}  // namespace
}  // namespace ficoco

TORCH_LIBRARY_IMPL(ficoco, CPU, m) {
  m.impl("attention_stats", &ficoco::attention_stats);
  m.impl("attention_stats.map", &ficoco::attention_stats_map);
  m.impl("filter", &ficoco::filter);
  m.impl("correlate", &ficoco::correlate);
  m.impl("correlate.map", &ficoco::correlate_map);
  m.impl("correlate.key", &ficoco::correlate_key);
  m.impl("compress", &ficoco::compress);
}
