// What greedy_select and greedy_cover share: how a block finds the best candidate, and the loop of greedy coverage.
#pragma once
#include <climits>

#include "cuda/utils.cuh"

namespace ficoco {

constexpr int kPickThreads = 512;
constexpr int kPickWarps = kPickThreads / kWarp;

struct BestShared {
  uint32_t key[kPickWarps];
  int index[kPickWarps];
  bool exact[kPickWarps];
};

// The best of the lanes' pairs, in every lane.
__device__ __forceinline__ void warp_best(uint32_t& key, int& index) {
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const uint32_t other_key = __shfl_xor_sync(kAllLanes, key, offset);
    const int other_index = __shfl_xor_sync(kAllLanes, index, offset);
    keep_better(key, index, other_key, other_index);
  }
}

// Candidates of one image that each cover every one of some things by an amount. Pointers are the image's own.
struct Coverage {
  int candidates, things;
  const float* rows;  // row j: by how much candidate j covers each thing
  int64_t stride;
  const int* columns;     // (things) where in a row each thing is, or nullptr for all in order
  const float* saliency;  // factor on a candidate's gain, or nullptr for 1
  float* covered;         // (things) by what each is covered before the first pick
  float* bound;           // (candidates) gains that are no longer exact
  int* computed;          // (candidates) the pick at which a bound was computed
  bool* free;             // (candidates)
  int64_t count;
  int64_t* order;  // (count)
  float* gains;    // (count)

  __device__ const float* row(int j) const { return rows + j * stride; }
  __device__ int column(int i) const { return columns ? columns[i] : i; }
};

// One block picks `count` candidates, each the one that adds most to `covered`, the lowest of equal ones. A gain only
// falls while more is covered, also as rounded: so an old gain is an upper bound. A warp owns every 16th candidate, and
// computes its best bound again only if that exceeds the best gain of this pick known so far. The caller has a barrier
// between writing `covered` and `free` and this.
__device__ inline void pick_by_coverage(const Coverage& c, BestShared& shared) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const auto compute = [&](int j, int step) {  // by one warp
    const float* row = c.row(j);
    float more = 0.f;
    for (int i = lane; i < c.things; i += kWarp) {
      const float x = row[c.column(i)], covered = c.covered[i];
      more += x > covered ? x - covered : 0.f;
    }
    more = warp_sum(more);
    if (lane == 0) {
      c.bound[j] = (c.saliency ? c.saliency[j] : 1.f) * more;
      c.computed[j] = step;
    }
    __syncwarp();
  };
  for (int j = warp; j < c.candidates; j += kPickWarps) {
    if (c.free[j]) compute(j, 0);
  }
  for (int step = 0; step < static_cast<int>(c.count); ++step) {
    int picked;
    while (true) {
      uint32_t key = 0;
      int index = INT_MAX;
      for (int j = warp + kPickWarps * lane; j < c.candidates; j += kPickWarps * kWarp) {
        if (c.free[j]) keep_better(key, index, ordered(c.bound[j]), j);
      }
      warp_best(key, index);
      if (lane == 0) {
        shared.key[warp] = key;
        shared.index[warp] = index;
        shared.exact[warp] = index < c.candidates && c.computed[index] == step;
      }
      __syncthreads();
      const bool exact = shared.exact[lane % kPickWarps];
      uint32_t top = shared.key[lane % kPickWarps], known = exact ? top : 0;
      int top_index = shared.index[lane % kPickWarps], known_index = exact ? top_index : INT_MAX;
      warp_best(top, top_index);
      warp_best(known, known_index);
      picked = top_index;
      const bool mine = shared.exact[warp];
      __syncthreads();  // all threads have read `shared`
      assert(picked < c.candidates && "ficoco: count is larger than the number of real tokens of a row");
      if (top_index == known_index) break;
      if (!mine && (key > known || (key == known && index < known_index))) compute(index, step);
    }
    const float* row = c.row(picked);
    if (picked % kPickWarps == warp) {
      if (lane == 0) c.free[picked] = false;
      __syncwarp();
    }
    if (threadIdx.x == 0) {
      c.order[step] = picked;
      c.gains[step] = c.bound[picked];
    }
    for (int i = threadIdx.x; i < c.things; i += kPickThreads) c.covered[i] = fmaxf(c.covered[i], row[c.column(i)]);
    __syncthreads();
  }
}

}  // namespace ficoco
