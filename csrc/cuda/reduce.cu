// One whole reduction. For logits: two reads of keys and queries with the filter in the tail of the second,
// correlations with the choice of targets in their tail, merge; four kernels. For probabilities: softmax statistics of
// all rows (and for columns their sums), the filter with what finishes the statistics, correlations that use them
// again, merge; four kernels (five).
#include "cuda/correlate.cuh"
#include "cuda/logits_stats.cuh"

namespace ficoco {
namespace {

// Statistics, filter and correlation can follow each other without a kernel between.
bool in_one_go(const ReduceParams& p) {
  return !p.map && p.stats.first && (!p.stats.probs || (p.stats.patches && can_filter_in_tail(p.filter)));
}

void take_stats_workspace(const AttentionStatsParams& p, Pieces& pieces) {
  p.probs ? take_probability_workspace(p, pieces) : take_logits_workspace(p, pieces);
}

}  // namespace

size_t workspace_bytes(const ReduceParams& p) {
  if (in_one_go(p)) {
    Pieces pieces(nullptr);
    pieces.take<uint32_t>(p.stats.batch);
    take_stats_workspace(p.stats, pieces);
    take_correlate_workspace(p.correlate, pieces);
    return max(pieces.used(), workspace_bytes(p.filter));
  }
  // One after the other, so they share.
  const size_t stats = p.map ? workspace_bytes(p.map_stats) : workspace_bytes(p.stats);
  return max(stats, max(workspace_bytes(p.filter), workspace_bytes(p.correlate)));
}

cudaError_t launch_reduce(const ReduceParams& p, void* workspace, cudaStream_t stream) {
  if (p.filter.batch == 0) return cudaSuccess;
  if (in_one_go(p)) {
    Pieces pieces(workspace);
    uint32_t* counters = pieces.take<uint32_t>(p.stats.batch);
    const bool tail = can_filter_in_tail(p.filter);
    KnownSoftmax known;
    if (p.stats.probs) {
      FICOCO_TRY(launch_probability_stats(p.stats, &p.filter, counters, pieces, &known, stream));
    } else {
      FICOCO_TRY(launch_logits_stats(p.stats, tail ? &p.filter : nullptr, tail ? counters : nullptr, pieces, stream));
      // The filter takes over the whole workspace, so counters that were set to 0 before it are only good without it.
      if (!tail) FICOCO_TRY(launch_filter(p.filter, workspace, stream));
    }
    FICOCO_TRY(launch_correlate(p.correlate, known, tail ? counters : nullptr, pieces, stream));
    return launch_compress(p.compress, stream);
  }
  if (p.map) {
    FICOCO_TRY(launch_attention_stats(p.map_stats, workspace, stream));
  } else {
    FICOCO_TRY(launch_attention_stats(p.stats, workspace, stream));
  }
  FICOCO_TRY(launch_filter(p.filter, workspace, stream));
  FICOCO_TRY(launch_correlate(p.correlate, workspace, stream));
  return launch_compress(p.compress, stream);
}

}  // namespace ficoco
