#include "calls.h"

#include "call_parts.h"

namespace ficoco {
namespace {

// Room for the statistics of `patches` patches, and where the kernel finds it.
template <class Call>
void allocate_stats(Call& call, const Tensor& like, int64_t batch, int64_t count, bool patches) {
  call.class_attention = floats(like, {batch, count});
  call.patch_attention = floats(like, {batch, count});
  if (!patches) call.patch_attention.zero_();
  call.params.class_attention = call.class_attention.template mutable_data_ptr<float>();
  call.params.patch_attention = call.patch_attention.template mutable_data_ptr<float>();
}

// The checked selection and room for the links; the attention is the caller's.
CorrelateCall links_call(const Tensor& sources, const Tensor& kept, int64_t batch, int64_t tokens, int64_t k,
                         std::string_view alpha, bool class_token, const Tensor& like) {
  constexpr const char* op = "correlate";
  check::selection(op, batch, tokens, sources, kept);
  check::same_device(op, "sources", sources, like);
  check::same_device(op, "kept", kept, like);
  const int64_t candidates = std::max<int64_t>(kept.size(1) - class_token, 0), r = sources.size(1);
  FICOCO_VALUE(k >= 0 && k <= candidates, op, "k", check::text("in [0, ", candidates, "], the number of kept patches"),
               k, "lower k or r");
  CorrelateCall call;
  call.sources = sources.contiguous();
  call.kept = kept.contiguous();
  call.targets = longs(like, {batch, r, k});
  call.weights = floats(like, {batch, r, k});
  call.params = {.sources = call.sources.const_data_ptr<int64_t>(),
                 .kept = call.kept.const_data_ptr<int64_t>(),
                 .batch = batch,
                 .tokens = tokens,
                 .r = r,
                 .kept_count = kept.size(1),
                 .k = k,
                 .first = class_token,
                 .alpha = alpha_of(alpha),
                 .targets = call.targets.mutable_data_ptr<int64_t>(),
                 .weights = call.weights.mutable_data_ptr<float>()};
  return call;
}

}  // namespace

StatsCall stats_call(const Tensor& query_, const Tensor& key_, double scale, bool class_token, bool probs, bool column,
                     bool patches) {
  constexpr const char* op = "attention_stats";
  check::query_key(op, query_, key_);
  check::has_patches(op, "query", query_, query_.size(2), class_token);
  StatsCall call;
  const Tensor query = call.hold(readable(query_)), key = call.hold(readable(key_));
  const int64_t b = query.size(0), n = query.size(2);
  call.params = {.query = rows_of(query),
                 .key = rows_of(key),
                 .batch = b,
                 .tokens = n,
                 .width = query.size(3),
                 .first = class_token,
                 .scale = static_cast<float>(scale),
                 .probs = probs,
                 .column = column,
                 .patches = patches};
  allocate_stats(call, query, b, n - class_token, patches);
  return call;
}

MapStatsCall stats_call(const Tensor& attn_, bool class_token, bool column, bool patches) {
  constexpr const char* op = "attention_stats";
  check::attention_map(op, attn_);
  check::has_patches(op, "attn", attn_, attn_.size(-1), class_token);
  MapStatsCall call;
  const Tensor attn = call.hold(readable(attn_));
  const int64_t b = attn.size(0), n = attn.size(-1);
  call.params = {
      .attn = rows_of(attn), .batch = b, .tokens = n, .first = class_token, .column = column, .patches = patches};
  allocate_stats(call, attn, b, n - class_token, patches);
  return call;
}

FilterCall filter_call(const Tensor& patch_attention_, const Tensor& class_attention_, const std::optional<Tensor>& ids,
                       const FilterSettings& s) {
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

CorrelateCall correlate_call(const Tensor& query_, const Tensor& key_, const Tensor& sources, const Tensor& kept,
                             int64_t k, double scale, std::string_view alpha, bool class_token, bool probs) {
  check::query_key("correlate", query_, key_);
  CorrelateCall call = links_call(sources, kept, query_.size(0), query_.size(2), k, alpha, class_token, query_);
  FICOCO_VALUE(call.params.alpha != Alpha::kRatio || probs, "correlate", "alpha", "softmax or average with logits",
               "ratio", "use probs, whose values are not negative");
  const Tensor query = call.hold(readable(query_)), key = call.hold(readable(key_));
  call.params.by = probs ? Correlation::kProbs : Correlation::kLogits;
  call.params.query = rows_of(query);
  call.params.key = rows_of(key);
  call.params.width = query.size(3);
  call.params.scale = static_cast<float>(scale);
  return call;
}

CorrelateCall correlate_call(const Tensor& attn_, const Tensor& sources, const Tensor& kept, int64_t k,
                             std::string_view alpha, bool class_token) {
  check::attention_map("correlate", attn_);
  CorrelateCall call = links_call(sources, kept, attn_.size(0), attn_.size(-1), k, alpha, class_token, attn_);
  call.params.by = Correlation::kMap;
  call.params.attn = rows_of(call.hold(readable(attn_)));
  return call;
}

CorrelateCall correlate_key_call(const Tensor& key_, const Tensor& sources, const Tensor& kept, int64_t k,
                                 std::string_view alpha, bool class_token) {
  check::key("correlate", key_);
  CorrelateCall call = links_call(sources, kept, key_.size(0), key_.size(2), k, alpha, class_token, key_);
  FICOCO_VALUE(call.params.alpha != Alpha::kRatio, "correlate", "alpha", "softmax or average with keys", "ratio",
               "a cosine can be negative");
  call.params.by = Correlation::kKey;
  call.params.key = rows_of(call.hold(readable(key_)));
  call.params.width = key_.size(3);
  return call;
}

MatchCall match_call(const Tensor& key_, int64_t r, bool class_token, bool distill_token) {
  constexpr const char* op = "match";
  check::key(op, key_);
  FICOCO_VALUE(class_token || !distill_token, op, "distill_token", "False without a class token", "True",
               "a distillation token is token 1, behind the class token");
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

CompressCall compress_call(const Tensor& tokens_, const Tensor& sources, const Tensor& kept, const Tensor& targets,
                           const Tensor& weights_, const std::optional<Tensor>& size_, bool size_weighted) {
  constexpr const char* op = "compress";
  check::floating(op, "tokens", tokens_);
  FICOCO_VALUE(tokens_.dim() == 3, op, "tokens", "(B, N, C)", check::describe(tokens_), "pass hidden states");
  const int64_t b = tokens_.size(0), n = tokens_.size(1), c = tokens_.size(2);
  check::selection(op, b, n, sources, kept);
  const int64_t r = sources.size(1), m = kept.size(1), k = targets.dim() == 3 ? targets.size(2) : 0;
  check::indices(op, "targets", targets, {b, r, k}, check::text("(", b, ", ", r, ", k)"));
  check::floating_or_double(op, "weights", weights_);
  FICOCO_VALUE(weights_.sizes() == targets.sizes(), op, "weights",
               check::text("(", b, ", ", r, ", ", k, ") like targets"), check::describe(weights_), "pass both");
  for (const auto& [name, t] :
       {std::pair{"sources", &sources}, {"kept", &kept}, {"targets", &targets}, {"weights", &weights_}}) {
    check::same_device(op, name, *t, tokens_);
  }
  CompressCall call;
  Tensor size;
  if (size_) {
    check::floating_or_double(op, "size", *size_);
    FICOCO_VALUE(size_->sizes() == at::IntArrayRef({b, n, 1}), op, "size", check::text("(", b, ", ", n, ", 1)"),
                 check::describe(*size_), "one count a token");
    check::same_device(op, "size", *size_, tokens_);
    size = call.hold(size_->to(at::kFloat).contiguous());
  }
  const Tensor tokens = call.hold(readable(tokens_)), weights = call.hold(weights_.to(at::kFloat).contiguous());
  call.sources = sources.contiguous();
  call.kept = kept.contiguous();
  call.targets = targets.contiguous();
  call.out = at::empty({b, m, c}, tokens.options());
  call.size = floats(tokens, {b, m, 1});
  call.source_map = longs(tokens, {b, n});
  call.params = {.tokens = rows_of(tokens),
                 .sources = call.sources.const_data_ptr<int64_t>(),
                 .kept = call.kept.const_data_ptr<int64_t>(),
                 .targets = call.targets.const_data_ptr<int64_t>(),
                 .weights = weights.const_data_ptr<float>(),
                 .size = size.defined() ? size.const_data_ptr<float>() : nullptr,
                 .batch = b,
                 .count = n,
                 .channels = c,
                 .r = r,
                 .kept_count = m,
                 .k = k,
                 .size_weighted = size_weighted,
                 .out = call.out.mutable_data_ptr(),
                 .out_size = call.size.mutable_data_ptr<float>(),
                 .source_map = call.source_map.mutable_data_ptr<int64_t>()};
  return call;
}

}  // namespace ficoco
