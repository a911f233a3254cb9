// One whole reduction. For logits: two reads of keys and queries with the filter in the tail of the second,
// correlations with the choice of targets in their tail, merge; four kernels.
#include "cuda/correlate.cuh"
#include "cuda/logits_stats.cuh"

namespace ficoco {
namespace {

bool by_logits(const ReduceParams& p) { return !p.map && !p.stats.probs && p.stats.first; }

}  // namespace

size_t workspace_bytes(const ReduceParams& p) {
  if (by_logits(p)) {
    Pieces pieces(nullptr);
    pieces.take<uint32_t>(p.stats.batch);
    take_logits_workspace(p.stats, pieces);
    take_correlate_workspace(p.correlate, pieces);
    return max(pieces.used(), workspace_bytes(p.filter));
  }
  // One after the other, so they share.
  const size_t stats = p.map ? workspace_bytes(p.map_stats) : workspace_bytes(p.stats);
  return max(stats, max(workspace_bytes(p.filter), workspace_bytes(p.correlate)));
}

cudaError_t launch_reduce(const ReduceParams& p, void* workspace, cudaStream_t stream) {
  if (p.filter.batch == 0) return cudaSuccess;
  if (by_logits(p)) {
    Pieces pieces(workspace);
    uint32_t* counters = pieces.take<uint32_t>(p.stats.batch);
    const bool tail = can_filter_in_tail(p.filter);
    FICOCO_TRY(launch_logits_stats(p.stats, tail ? &p.filter : nullptr, tail ? counters : nullptr, pieces, stream));
    // The filter takes over the whole workspace, so counters that were set to 0 before it are only good without it.
    if (!tail) FICOCO_TRY(launch_filter(p.filter, workspace, stream));
    FICOCO_TRY(launch_correlate(p.correlate, tail ? counters : nullptr, pieces, stream));
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
