// The r largest of a block's numbers, in ascending order of their indices. The numbers stay in registers.
#pragma once
#include "cuda/utils.cuh"

namespace ficoco {

struct SelectShared {
  int counted[2][kWarp];
  uint32_t smallest[kWarp], largest[kWarp];
  int counts[16 * kWarp];  // [item][warp]
};

// The r largest keys are those above `threshold` and the first `equal` of those equal to it.
struct Threshold {
  uint32_t threshold;
  int equal;
};

// The r-th largest of `count` keys, which thread t has at t, t + blockDim.x, ..; keys of those that do not exist are 0.
// The interval that holds it is halved until a threshold parts the r largest from the rest: a count of the block's
// keys, with one barrier, for each step. A step more for every bit that two neighbours have in common, at most 32.
template <int kItems>
__device__ Threshold select_threshold(int count, int r, const uint32_t (&keys)[kItems], SelectShared& shared) {
  if (r == 0) return {0xffffffffu, 0};
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
  uint32_t low = 0xffffffffu, high = 0;
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const bool exists = static_cast<int>(threadIdx.x + k * blockDim.x) < count;
    low = exists ? min(low, keys[k]) : low;
    high = max(high, keys[k]);
  }
  low = __reduce_min_sync(kAllLanes, low);
  high = __reduce_max_sync(kAllLanes, high);
  if (lane == 0) {
    shared.smallest[warp] = low;
    shared.largest[warp] = high;
  }
  __syncthreads();
  low = __reduce_min_sync(kAllLanes, shared.smallest[min(lane, warps - 1)]);
  high = __reduce_max_sync(kAllLanes, shared.largest[min(lane, warps - 1)]);
  int beyond = 0;  // keys above `high`
  for (int step = 0; low < high; ++step) {
    const uint32_t between = high - low, middle = low + (between >> 1) + (between & 1u);
    int mine = 0;
#pragma unroll
    for (int k = 0; k < kItems; ++k) mine += keys[k] >= middle;
    mine = __reduce_add_sync(kAllLanes, mine);
    int (&counted)[kWarp] = shared.counted[step % 2];  // others may still read those of the last step
    if (lane == 0) counted[warp] = mine;
    __syncthreads();
    const int all = __reduce_add_sync(kAllLanes, lane < warps ? counted[lane] : 0);
    if (all == r) return {middle - 1, 0};
    if (all > r) {
      low = middle;
    } else {
      high = middle - 1;
      beyond = all;
    }
  }
  return {low, r - beyond};
}

// Flags of this thread's items, a bit each; their ranks among all flags of the block, which are ordered by index.
template <int kItems>
__device__ void prepare_ranks(uint32_t flags, SelectShared& shared) {
  const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const uint32_t votes = __ballot_sync(kAllLanes, flags >> k & 1u);
    if (threadIdx.x % kWarp == 0) shared.counts[k * warps + warp] = __popc(votes);
  }
  __syncthreads();
  if (warp == 0) warp_scan(shared.counts, kItems * warps);
  __syncthreads();
}

// Flagged items before item k. All lanes of the warp call it.
__device__ __forceinline__ int rank_of(uint32_t flags, int k, const SelectShared& shared) {
  const uint32_t below = (1u << threadIdx.x % kWarp) - 1, votes = __ballot_sync(kAllLanes, flags >> k & 1u);
  return shared.counts[k * (blockDim.x / kWarp) + threadIdx.x / kWarp] + __popc(votes & below);
}

// A bit for each of this thread's items that is among the r largest of `count`, whose ranks are prepared.
template <int kItems>
__device__ uint32_t select_largest(int count, int r, const uint32_t (&keys)[kItems], SelectShared& shared) {
  const Threshold by = select_threshold(count, r, keys, shared);
  uint32_t equal = 0, chosen = 0;
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const bool exists = static_cast<int>(threadIdx.x + k * blockDim.x) < count;
    equal |= static_cast<uint32_t>(exists && keys[k] == by.threshold) << k;
    chosen |= static_cast<uint32_t>(exists && keys[k] > by.threshold) << k;
  }
  if (by.equal > 0) {  // among equals the lowest indices
    prepare_ranks<kItems>(equal, shared);
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      const bool wanted = rank_of(equal, k, shared) < by.equal;
      chosen |= (equal >> k & static_cast<uint32_t>(wanted)) << k;
    }
  }
  prepare_ranks<kItems>(chosen, shared);
  return chosen;
}

}  // namespace ficoco
