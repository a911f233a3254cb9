// The operators on CPU tensors: checks the values of indices, then has the kernels of cpu/ run image after image, on
// torch's threads.
#include <ATen/Parallel.h>

#include <algorithm>
#include <functional>
#include <type_traits>

#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "images.h"
#include "ops/attention_stats.h"
#include "ops/bipartite_thin.h"
#include "ops/compress.h"
#include "ops/correlate.h"
#include "ops/correlate_tokens.h"
#include "ops/cosines.h"
#include "ops/filter.h"
#include "ops/greedy_cover.h"
#include "ops/greedy_select.h"
#include "ops/match.h"
#include "ops/received_from.h"
#include "ops/reduce.h"
#include "ops/reduce_sequence.h"
#include "ops/to_sequence.h"
#include "ops/token_attention.h"
#include "ops/top_of_segments.h"
#include "ops/window_similarity.h"

namespace ficoco {

void parallel_for(int64_t count, const void* task, void (*run)(const void* task, int64_t begin, int64_t end)) {
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) { run(task, begin, end); });
}

namespace {

void raise(Fault fault) {
  FICOCO_VALUE(fault != Fault::kScoreNotFinite, "filter", "redundancy", "finite", "NaN or infinity among the scores",
               "check the attention it is made of");
  FICOCO_VALUE(fault != Fault::kCorrelationNotFinite, "correlate", "correlations", "finite",
               "NaN or infinity among them", "check the attention they are made of");
  FICOCO_VALUE(fault != Fault::kKeyNotFinite, "match", "key", "finite", "NaN or infinity among the keys",
               "check the layer they come from");
  FICOCO_VALUE(fault != Fault::kFeatureNotFinite, "greedy_select", "features", "finite", "NaN or infinity among them",
               "check the layer they come from");
  FICOCO_VALUE(fault != Fault::kSaliency, "greedy_select", "saliency", "finite and at least 0", "others",
               "shift it, or take its exponential");
  FICOCO_VALUE(fault != Fault::kCoverNotFinite, "greedy_cover", "cover", "finite", "NaN or infinity among it",
               "check what it is made of");
  FICOCO_VALUE(fault != Fault::kTooFewToCover, "greedy_cover", "count", "at most the real tokens of every row", "more",
               "lower it");
  FICOCO_VALUE(fault != Fault::kTooFewTokens, "greedy_select", "count", "at most the real tokens of every row", "more",
               "lower it");
  FICOCO_VALUE(fault != Fault::kThinnedNotFinite, "bipartite_thin", "features", "finite", "NaN or infinity among them",
               "check the layer they come from");
  FICOCO_VALUE(fault != Fault::kListTooShort, "bipartite_thin", "count", "at most the real tokens of every list",
               "more", "lower it");
  FICOCO_VALUE(fault != Fault::kSegmentScore, "top_of_segments", "scores", "numbers", "NaN among them",
               "check what they are made of");
  FICOCO_VALUE(fault != Fault::kSegmentCount, "top_of_segments", "counts", "in [0, the tokens of the segment]",
               "others", "lower what is too much");
  FICOCO_VALUE(fault != Fault::kSegmentTotal, "top_of_segments", "total", "the sum of counts in every row", "another",
               "pass that sum");
  FICOCO_VALUE(fault != Fault::kNegativeRatio, "correlate", "attn", "non-negative for alpha='ratio'",
               "a negative correlation", "use softmax");
  FICOCO_VALUE(fault != Fault::kNotAscending, "to_sequence", "visual", "ascending positions in [0, tokens)", "others",
               "pass where the image tokens are");
  FICOCO_VALUE(fault != Fault::kNoPartition, "to_sequence", "sources and kept",
               "ascending and together every index of visual once", "other indices", "pass what filter returned");
}

// Runs task(b) for every image. If there are enough, each thread takes whole images, which stay in its cache from
// one pass to the next, and a kernel's parallel loops run in that one thread. Else all threads share one image after
// another.
template <class Task>
void each_image(int64_t batch, const Task& task) {
  const int64_t threads = at::get_num_threads();
  if (batch >= threads && (batch % threads == 0 || batch >= 4 * threads)) {
    each(batch, task);
  } else {
    for (int64_t b = 0; b < batch; ++b) task(b);
  }
}

// Runs `kernel` on the params of every image. If it returns faults, the worst is raised.
template <class Params, class Kernel>
void run_images(const Params& params, const Kernel& kernel) {
  if constexpr (std::is_void_v<std::invoke_result_t<Kernel, const Params&>>) {
    each_image(params.batch, [&](int64_t b) { kernel(image(params, b)); });
  } else {
    std::vector<Fault> faults(params.batch);
    each_image(params.batch, [&](int64_t b) { faults[b] = kernel(image(params, b)); });
    raise(worst(faults));
  }
}

void check_ids(const FilterCall& call) {
  if (call.ids.defined()) {
    check::in_range("filter", "ids", call.ids, call.params.grid_height * call.params.grid_width);
  }
}

class Cpu final : public Device {
 public:
  void run(const AttentionStatsCall& call) const override {
    run_images(call.params, [](const AttentionStatsParams& p) { attention_stats_image(p); });
  }

  void run(const AttentionStatsMapCall& call) const override {
    run_images(call.params, [](const AttentionStatsMapParams& p) { attention_stats_image(p); });
  }

  void run(const FilterCall& call) const override {
    check_ids(call);
    run_images(call.params, filter_image);
  }

  void run(const CorrelateCall& call) const override {
    check::in_range("correlate", "sources", call.sources, call.params.tokens);
    check::in_range("correlate", "kept", call.kept, call.params.tokens);
    run_images(call.params, correlate_image);
  }

  void run(const CorrelateTokensCall& call) const override {
    const int64_t keys = call.params.keys, first_query = call.params.offset;
    check::in_range("correlate", "sources", call.sources, keys, first_query);
    check::in_range("correlate", "candidates", call.candidates, keys);
    check::in_range("correlate", "others", call.others, keys, first_query);
    run_images(call.params, correlate_tokens_image);
  }

  void run(const MatchCall& call) const override { run_images(call.params, match_image); }

  void run(const CosinesCall& call) const override { run_images(call.params, cosines_image); }

  void run(const GreedySelectCall& call) const override { run_images(call.params, greedy_select_image); }

  void run(const GreedyCoverCall& call) const override { run_images(call.params, greedy_cover_image); }

  void run(const BipartiteThinCall& call) const override {
    check::in_range("bipartite_thin", "order", call.order, call.params.tokens);
    run_images(call.params, bipartite_thin_image);
  }

  void run(const WindowSimilarityCall& call) const override { run_images(call.params, window_similarity_image); }

  void run(const ReceivedFromCall& call) const override {
    check::in_range("received_from", "visual", call.visual, call.params.keys);
    check::in_range("received_from", "text", call.text, call.params.keys, call.params.offset);
    run_images(call.params, received_from_image);
  }

  void run(const TopOfSegmentsCall& call) const override {
    check::in_range("top_of_segments", "segments", call.segments, call.params.groups);
    run_images(call.params, top_of_segments_image);
  }

  void run(const CompressCall& call) const override {
    check::in_range("compress", "sources", call.sources, call.params.count);
    check::in_range("compress", "kept", call.kept, call.params.count);
    check::in_range("compress", "targets", call.targets, call.params.kept_count);
    run_images(call.params, compress_image);
  }

  void run(const TokenAttentionCall& call) const override {
    const int64_t keys = call.params.keys, first_query = call.params.offset;
    check::in_range("token_attention", "tokens", call.tokens, keys, call.params.column ? 0 : first_query);
    check::in_range("token_attention", "others", call.others, keys, call.params.column ? first_query : 0);
    run_images(call.params, token_attention_image);
  }

  void run(const ToSequenceCall& call) const override {
    check::in_range("to_sequence", "targets", call.given_targets, call.params.count - call.params.r);
    run_images(call.params, to_sequence_image);
  }

  // All four stages of an image before the next image: its keys are still in the cache when Correlate reads them again.
  void run(const ReduceCall& call) const override {
    check_ids(call.filter);
    std::vector<Fault> faults(call.filter.params.batch);
    const auto run_stages = [&](const auto& stats) {
      each_image(stats.params.batch, [&](int64_t b) {
        attention_stats_image(image(stats.params, b));
        faults[b] = filter_image(image(call.filter.params, b));
        if (faults[b] == Fault::kNone) faults[b] = correlate_image(image(call.correlate.params, b));
        if (faults[b] == Fault::kNone) compress_image(image(call.compress.params, b));
      });
    };
    std::visit(run_stages, call.stats);
    raise(worst(faults));
  }

  void run(const ReduceSequenceCall& call) const override {
    const ReduceSequenceParams& p = call.params;
    check::ascending("reduce_sequence", "visual", call.visual, p.count);
    if (call.ids.defined()) check::in_range("filter", "ids", call.ids, p.grid_height * p.grid_width);
    run_images(p, reduce_sequence_image);
  }
};

}  // namespace

const Device& cpu_device() {
  static const Cpu device;
  return device;
}

}  // namespace ficoco
