// A selection among the visual tokens of a sequence, as positions in the sequence.
//
// A thread owns one entry of each result: no marks, no prefix sums, no shared memory, any size. Both lists ascend and
// together are all visual tokens. So kept[t] - t sources come before survivor t, and it moves down by that much. How
// many sources come before the j-th column that stays is found by bisection: source i does if its column less i is at
// most j.
//
// About 8 (T + 3 n + 2 r k) bytes an image for a sequence of T, no FLOPs. Bound by the latency of 2 log2(r) reads, each
// of which waits for the one before.
#include <algorithm>

#include "cuda/utils.cuh"

namespace ficoco {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads, 2) to_sequence_kernel(ToSequenceParams p) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, b = blockIdx.y;
  const int64_t kept_count = p.count - p.r, left = p.tokens - p.r;
  const int64_t *visual = p.visual + b * p.count, *sources = p.sources + b * p.r, *kept = p.kept + b * kept_count;
  const auto position_of = [&](int64_t index) {
    assert(index >= 0 && index < p.count && "ficoco::to_sequence: an index is no visual token");
    assert(visual[index] >= 0 && visual[index] < p.tokens && "ficoco::to_sequence: a position is not in the sequence");
    return visual[index];
  };
  const auto survivor = [&](int64_t t) { return position_of(kept[t]) - (kept[t] - t); };
  if (i < p.r) p.source_positions[b * p.r + i] = position_of(sources[i]);
  if (i < kept_count) p.visual_positions[b * kept_count + i] = survivor(i);
  if (i < p.r * p.k) {
    const int64_t target = p.targets[b * p.r * p.k + i];
    assert(target >= 0 && target < kept_count && "ficoco::to_sequence: a target is no survivor");
    p.target_indices[b * p.r * p.k + i] = survivor(target);
  }
  if (i < left) {
    int64_t before = 0, rest = p.r;  // sources [0, before) are before it, those from `rest` on are not
    while (before < rest) {
      const int64_t middle = (before + rest) / 2;
      if (position_of(sources[middle]) - middle <= i) {
        before = middle + 1;
      } else {
        rest = middle;
      }
    }
    p.kept_positions[b * left + i] = i + before;
  }
}

}  // namespace

cudaError_t launch_to_sequence(const ToSequenceParams& p, cudaStream_t stream) {
  const int64_t entries = std::max({p.tokens - p.r, p.r * p.k, p.r});  // tokens - r >= n - r
  if (p.batch * entries == 0) return cudaSuccess;
  to_sequence_kernel<<<dim3(ceil_div(entries, kThreads), p.batch), kThreads, 0, stream>>>(p);
  return launched();
}

}  // namespace ficoco
