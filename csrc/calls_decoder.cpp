// Calls of the operators for decoders.
#include "call_parts.h"

namespace ficoco {
namespace {

// Query, key, mask and lists of tokens of one of them.
void check_tokens(const char* op, const Tensor& query, const Tensor& key, const std::optional<Tensor>& key_mask,
                  std::initializer_list<std::pair<const char*, const Tensor*>> lists) {
  check::query_key(op, query, key, true);
  const int64_t b = query.size(0), t = key.size(2);
  for (const auto& [name, index] : lists) {
    const int64_t count = index->dim() == 2 ? index->size(1) : 0;
    check::indices(op, name, *index, {b, count}, check::text("(", b, ", count)"));
    check::same_device(op, name, *index, query);
  }
  if (!key_mask) return;
  FICOCO_TYPE(key_mask->scalar_type() == at::kBool, op, "key_mask", check::text("(", b, ", ", t, ") bool"),
              check::describe(*key_mask), "True where a token is real");
  FICOCO_VALUE(key_mask->sizes() == at::IntArrayRef({b, t}), op, "key_mask", check::text("(", b, ", ", t, ")"),
               check::describe(*key_mask), "one flag for each key");
  check::same_device(op, "key_mask", *key_mask, query);
}

const bool* mask_of(Held& call, const std::optional<Tensor>& key_mask) {
  return key_mask ? call.hold(key_mask->contiguous()).const_data_ptr<bool>() : nullptr;
}

const float* floats_of(Held& call, const Tensor& t) {
  return call.hold(t.to(at::kFloat).contiguous()).const_data_ptr<float>();
}

}  // namespace

TokenCall token_call(const Tensor& query_, const Tensor& key_, const Tensor& tokens, const Tensor& others,
                     const Tensor& weights, const std::optional<Tensor>& key_mask, double scale, bool probs,
                     bool column, bool causal) {
  constexpr const char* op = "token_attention";
  check_tokens(op, query_, key_, key_mask, {{"tokens", &tokens}, {"others", &others}});
  check::floating_or_double(op, "weights", weights);
  const int64_t b = query_.size(0);
  FICOCO_VALUE(weights.dim() == 3 && weights.size(0) == b && weights.size(2) == others.size(1), op, "weights",
               check::text("(", b, ", W, ", others.size(1), ")"), check::describe(weights),
               "one weight for each of others");
  check::same_device(op, "weights", weights, query_);
  TokenCall call;
  const Tensor query = call.hold(readable(query_)), key = call.hold(readable(key_));
  call.tokens = tokens.contiguous();
  call.others = others.contiguous();
  call.out = floats(query, {b, weights.size(1), tokens.size(1)});
  call.params = {.query = rows_of(query),
                 .key = rows_of(key),
                 .tokens = call.tokens.const_data_ptr<int64_t>(),
                 .others = call.others.const_data_ptr<int64_t>(),
                 .weights = floats_of(call, weights),
                 .key_mask = mask_of(call, key_mask),
                 .batch = b,
                 .keys = key.size(2),
                 .offset = key.size(2) - query.size(2),
                 .width = query.size(3),
                 .count = tokens.size(1),
                 .other_count = others.size(1),
                 .sets = weights.size(1),
                 .scale = static_cast<float>(scale),
                 .probs = probs,
                 .column = column,
                 .causal = causal,
                 .out = call.out.mutable_data_ptr<float>()};
  return call;
}

TokenLinksCall token_links_call(const Tensor& query_, const Tensor& key_, const Tensor& sources,
                                const Tensor& candidates, const Tensor& others, const Tensor& weights,
                                const std::optional<Tensor>& key_mask, int64_t k, double scale, double gamma,
                                std::string_view alpha, bool probs, bool column, bool causal) {
  constexpr const char* op = "correlate";
  check_tokens(op, query_, key_, key_mask, {{"sources", &sources}, {"candidates", &candidates}, {"others", &others}});
  check::floating_or_double(op, "weights", weights);
  FICOCO_VALUE(weights.sizes() == others.sizes(), op, "weights",
               check::text("(", others.size(0), ", ", others.size(1), ") like others"), check::describe(weights),
               "one weight for each of others");
  check::same_device(op, "weights", weights, query_);
  const int64_t b = query_.size(0), r = sources.size(1), m = candidates.size(1);
  FICOCO_VALUE(k >= 0 && k <= m, op, "k", check::text("in [0, ", m, "], the number of kept patches"), k,
               "lower k or r");
  FICOCO_VALUE(gamma >= 0 && gamma <= 1, op, "gamma", "in [0, 1]", gamma, "1 is direct attention alone");
  TokenLinksCall call;
  const Tensor query = call.hold(readable(query_)), key = call.hold(readable(key_));
  call.sources = sources.contiguous();
  call.candidates = candidates.contiguous();
  call.others = others.contiguous();
  call.targets = longs(query, {b, r, k});
  call.weights = floats(query, {b, r, k});
  call.params = {.query = rows_of(query),
                 .key = rows_of(key),
                 .sources = call.sources.const_data_ptr<int64_t>(),
                 .candidates = call.candidates.const_data_ptr<int64_t>(),
                 .others = call.others.const_data_ptr<int64_t>(),
                 .others_weight = floats_of(call, weights),
                 .key_mask = mask_of(call, key_mask),
                 .batch = b,
                 .keys = key.size(2),
                 .offset = key.size(2) - query.size(2),
                 .width = query.size(3),
                 .r = r,
                 .candidate_count = m,
                 .other_count = others.size(1),
                 .k = k,
                 .scale = static_cast<float>(scale),
                 .gamma = static_cast<float>(gamma),
                 .alpha = alpha_of(alpha),
                 .probs = probs,
                 .column = column,
                 .causal = causal,
                 .targets = call.targets.mutable_data_ptr<int64_t>(),
                 .weights = call.weights.mutable_data_ptr<float>()};
  return call;
}

SequenceCall sequence_call(const Tensor& visual, const Tensor& sources, const Tensor& kept, const Tensor& targets,
                           int64_t tokens) {
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
  SequenceCall call;
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
                 .source_columns = call.sources.mutable_data_ptr<int64_t>(),
                 .kept_columns = call.kept.mutable_data_ptr<int64_t>(),
                 .target_places = call.targets.mutable_data_ptr<int64_t>(),
                 .visual_places = call.visual.mutable_data_ptr<int64_t>()};
  return call;
}

}  // namespace ficoco
