// One whole reduction, in four or five kernels.
//
// Logits, four kernels: two reads of keys and queries, the second filters at its end; correlations, which choose the
// targets at their end; merge. Probabilities, four kernels: softmax statistics of all rows; a kernel that finishes the
// statistics and filters; correlations, which use the softmax statistics again; merge. Sums over columns are a fifth
// kernel.
#include "cuda/correlate.cuh"
#include "cuda/logits_stats.cuh"

namespace ficoco {
namespace {

// Whether statistics, filter and correlation can follow each other without a kernel between them.
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
  // They run one after the other, so they share the workspace.
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
      // The filter takes over the whole workspace, so counters set to 0 before it can be used only if it does not run.
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
