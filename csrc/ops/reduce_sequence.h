// reduce_sequence: all that a reducing layer of a language model does with its sequence.
#pragma once
#include "ops/call.h"
#include "ops/device.h"

namespace ficoco {

struct ReduceSequenceCall : Call {
  Tensor out, size, source_map, redundancy, sources, kept, targets, weights, left_visual;
  Tensor visual, ids;  // contiguous; ids undefined if there are none
  ReduceSequenceParams params;
};

struct SequenceSettings {
  int64_t r, k, after;
  std::string_view ranking;
  double beta;
  std::string_view visual_reduce, text_reduce;
  double penalty;
  int64_t window, grid_height, grid_width;
  std::string_view correlation;
  double gamma;
  std::string_view indirect_reduce, alpha;
};

namespace check {

constexpr const char* kReduceSequence = "reduce_sequence";

inline void one_of(const char* argument, std::string_view got, std::initializer_list<std::string_view> choices) {
  std::string wanted;
  bool found = false;
  for (const std::string_view choice : choices) {
    wanted += (wanted.empty() ? "one of " : ", ") + std::string(choice);
    found = found || got == choice;
  }
  FICOCO_VALUE(found, kReduceSequence, argument, wanted, std::string(got), "pick one of them");
}

// Whether it is "mean" and not "sum".
inline bool is_mean(const char* argument, std::string_view reduce) {
  one_of(argument, reduce, {"mean", "sum"});
  return reduce == "mean";
}

inline void sequence_shapes(const Tensor& tokens, const Tensor& query, const Tensor& key, const Tensor& visual,
                            const std::optional<Tensor>& key_mask, const std::optional<Tensor>& size) {
  constexpr const char* op = kReduceSequence;
  floating(op, "tokens", tokens);
  FICOCO_VALUE(tokens.dim() == 3, op, "tokens", "(B, N, C)", describe(tokens), "pass hidden states");
  const int64_t b = tokens.size(0), n = tokens.size(1);
  chosen_tokens(op, query, key, key_mask, {{"visual", &visual}});
  for (const auto& [name, given] : {std::pair{"query", &query}, {"key", &key}}) {
    FICOCO_VALUE(given->size(0) == b && given->size(2) == n, op, name, text("of ", b, " rows of ", n, " tokens"),
                 describe(*given), "they are those of the tokens");
  }
  same_device(op, "query", query, tokens);
  if (size) {
    floating_or_double(op, "size", *size);
    FICOCO_VALUE(size->sizes() == at::IntArrayRef({b, n, 1}), op, "size", text("(", b, ", ", n, ", 1)"),
                 describe(*size), "one count a token");
    same_device(op, "size", *size, tokens);
  }
}

inline void sequence_settings(const SequenceSettings& s, int64_t tokens, int64_t visual) {
  constexpr const char* op = kReduceSequence;
  FICOCO_VALUE(s.r >= 0 && s.r < visual, op, "r", text("in [0, ", visual - 1, "] for ", visual, " visual tokens"), s.r,
               "at least one stays");
  FICOCO_VALUE(s.after >= 0 && s.after <= tokens - visual, op, "after",
               text("in [0, ", tokens - visual, "], the tokens that are not visual"), s.after, "leave it out");
  FICOCO_VALUE(s.k >= 0 && s.k <= visual - s.r, op, "k", text("in [0, ", visual - s.r, "], the number of kept patches"),
               s.k, "lower k or r");
  one_of("ranking", s.ranking, {"logits", "probs", "last"});
  one_of("correlation", s.correlation, {"logits", "probs"});
  for (const auto& [name, share] : {std::pair{"beta", s.beta}, {"gamma", s.gamma}}) {
    FICOCO_VALUE(share >= 0 && share <= 1, op, name, "in [0, 1]", share, "it is a share");
  }
}

// The grid of a local penalty; returns the cells of the visual tokens, if they are given.
inline Tensor sequence_grid(const SequenceSettings& s, const std::optional<Tensor>& ids, const Tensor& visual) {
  constexpr const char* op = "filter";
  if (s.ranking == "last") return {};
  FICOCO_VALUE(s.penalty >= 1 && s.window >= 1, op, "penalty, window", "at least 1", text(s.penalty, ", ", s.window),
               "1 switches the penalty off");
  if (s.penalty == 1) return {};
  const std::string grid = text("(", s.grid_height, ", ", s.grid_width, ")");
  FICOCO_VALUE(s.grid_height > 0 && s.grid_width > 0, op, "grid", "of positive sides", grid, "pass (height, width)");
  FICOCO_VALUE(s.grid_height <= kMaxCells / s.grid_width, op, "grid", text("of at most ", kMaxCells, " cells"), grid,
               "pass (height, width) in patches");
  if (!ids) {
    FICOCO_VALUE(s.grid_height * s.grid_width == visual.size(1), op, "grid", text("of ", visual.size(1), " cells"),
                 grid, "pass the grid or penalty=1");
    return {};
  }
  indices(op, "ids", *ids, visual.sizes(), text("(", visual.size(0), ", ", visual.size(1), ")"));
  same_device(op, "ids", *ids, visual);
  return ids->contiguous();
}

}  // namespace check

inline ReduceSequenceCall reduce_sequence_call(const Tensor& tokens_, const Tensor& query_, const Tensor& key_,
                                               double scale, const Tensor& visual,
                                               const std::optional<Tensor>& key_mask, const std::optional<Tensor>& ids,
                                               const std::optional<Tensor>& size, const SequenceSettings& s,
                                               bool size_weighted) {
  check::sequence_shapes(tokens_, query_, key_, visual, key_mask, size);
  const int64_t b = tokens_.size(0), n = tokens_.size(1), count = visual.size(1), left = n - s.r;
  FICOCO_VALUE(count >= 1 && count <= n, check::kReduceSequence, "visual", check::text("of 1 to ", n, " columns"),
               check::describe(visual), "pass where the visual tokens are");
  check::sequence_settings(s, n, count);
  ReduceSequenceCall call;
  call.ids = check::sequence_grid(s, ids, visual);
  call.visual = visual.contiguous();
  const Tensor tokens = call.hold(readable(tokens_)), query = call.hold(readable(query_));
  const Tensor key = call.hold(readable(key_));
  call.out = at::empty({b, left, tokens.size(2)}, tokens.options());
  call.size = floats(tokens, {b, left, 1});
  call.source_map = longs(tokens, {b, n});
  call.redundancy = floats(tokens, {b, count});
  call.sources = longs(tokens, {b, s.r});
  call.kept = longs(tokens, {b, left});
  call.targets = longs(tokens, {b, s.r, s.k});
  call.weights = floats(tokens, {b, s.r, s.k});
  call.left_visual = longs(tokens, {b, count - s.r});
  call.params = {.tokens = rows_of(tokens),
                 .query = rows_of(query),
                 .key = rows_of(key),
                 .visual = call.visual.const_data_ptr<int64_t>(),
                 .real = mask_of(call, key_mask),
                 .ids = call.ids.defined() ? call.ids.const_data_ptr<int64_t>() : nullptr,
                 .size = size ? floats_of(call, *size) : nullptr,
                 .batch = b,
                 .count = n,
                 .visual_count = count,
                 .channels = tokens.size(2),
                 .width = query.size(3),
                 .r = s.r,
                 .k = s.k,
                 .after = s.after,
                 .scale = static_cast<float>(scale),
                 .ranking = s.ranking == "logits"  ? Ranking::kLogits
                            : s.ranking == "probs" ? Ranking::kProbs
                                                   : Ranking::kLast,
                 .beta = static_cast<float>(s.beta),
                 .penalty = static_cast<float>(s.penalty),
                 .visual_mean = check::is_mean("visual_reduce", s.visual_reduce),
                 .text_mean = check::is_mean("text_reduce", s.text_reduce),
                 .indirect_mean = check::is_mean("indirect_reduce", s.indirect_reduce),
                 .window = s.window,
                 .grid_height = s.grid_height,
                 .grid_width = s.grid_width,
                 .probs = s.correlation == "probs",
                 .gamma = static_cast<float>(s.gamma),
                 .alpha = alpha_of(s.alpha),
                 .size_weighted = size_weighted,
                 .out = call.out.mutable_data_ptr(),
                 .out_size = call.size.mutable_data_ptr<float>(),
                 .source_map = call.source_map.mutable_data_ptr<int64_t>(),
                 .redundancy = call.redundancy.mutable_data_ptr<float>(),
                 .sources = call.sources.mutable_data_ptr<int64_t>(),
                 .kept = call.kept.mutable_data_ptr<int64_t>(),
                 .targets = call.targets.mutable_data_ptr<int64_t>(),
                 .weights = call.weights.mutable_data_ptr<float>(),
                 .left_visual = call.left_visual.mutable_data_ptr<int64_t>()};
  return call;
}

using Shortened = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

inline Shortened reduce_sequence(const Tensor& tokens, const Tensor& query, const Tensor& key, double scale,
                                 const Tensor& visual, const std::optional<Tensor>& key_mask,
                                 const std::optional<Tensor>& ids, const std::optional<Tensor>& size, int64_t r,
                                 int64_t k, int64_t after, std::string_view ranking, double beta,
                                 std::string_view visual_reduce, std::string_view text_reduce, double penalty,
                                 int64_t window, int64_t grid_height, int64_t grid_width, std::string_view correlation,
                                 double gamma, std::string_view indirect_reduce, std::string_view alpha,
                                 bool size_weighted) {
  const SequenceSettings settings{r,       k,      after,       ranking,    beta,        visual_reduce, text_reduce,
                                  penalty, window, grid_height, grid_width, correlation, gamma,         indirect_reduce,
                                  alpha};
  const ReduceSequenceCall call =
      reduce_sequence_call(tokens, query, key, scale, visual, key_mask, ids, size, settings, size_weighted);
  Device::of(call.out).run(call);
  return {call.out,  call.size,    call.source_map, call.redundancy, call.sources,
          call.kept, call.targets, call.weights,    call.left_visual};
}

}  // namespace ficoco
