// A selection among the visual tokens of a sequence, in places of the sequence.
//
// A thread has one entry of each result: no marks, no prefix sums, no shared memory, any size. Both lists ascend and
// together are all visual tokens, so kept[t] - t sources come before survivor t, and by that much it moves down. How
// many come before the j-th column that stays is found by bisection: source i does if its column less i is at most j.
//
// About 8 (T + 3 n + 2 r k) bytes an image for a sequence of T, no FLOPs; bound by the latency of 2 log2(r) reads, each
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
  const auto column_of = [&](int64_t place) {
    assert(place >= 0 && place < p.count && "ficoco::to_sequence: a place is no visual token");
    assert(visual[place] >= 0 && visual[place] < p.tokens && "ficoco::to_sequence: a column is not in the sequence");
    return visual[place];
  };
  const auto survivor = [&](int64_t t) { return column_of(kept[t]) - (kept[t] - t); };
  if (i < p.r) p.source_columns[b * p.r + i] = column_of(sources[i]);
  if (i < kept_count) p.visual_places[b * kept_count + i] = survivor(i);
  if (i < p.r * p.k) {
    const int64_t target = p.targets[b * p.r * p.k + i];
    assert(target >= 0 && target < kept_count && "ficoco::to_sequence: a target is no survivor");
    p.target_places[b * p.r * p.k + i] = survivor(target);
  }
  if (i < left) {
    int64_t before = 0, rest = p.r;  // sources [0, before) are before it, those from `rest` on are not
    while (before < rest) {
      const int64_t middle = (before + rest) / 2;
      if (column_of(sources[middle]) - middle <= i) {
        before = middle + 1;
      } else {
        rest = middle;
      }
    }
    p.kept_columns[b * left + i] = i + before;
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
