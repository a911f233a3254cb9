// Filter of one image by one block: scores in registers, selection by radix, compaction in ascending order.
#pragma once
#include "cuda/utils.cuh"

namespace ficoco {

struct FilterShared {
  double sums[kWarp];
  int histogram[256];
  int counts[16 * kWarp];  // [item][warp]
  uint32_t prefix;
  int left;
};

using Cell = unsigned long long;  // the best of a window: score above, complement of the place below

inline __host__ __device__ int64_t filter_cells(const FilterParams& p) {
  return p.penalty == 1.f ? 0 : (p.grid_height / p.window) * (p.grid_width / p.window);
}

// Length of the vector that the block's items are. In double, or the squares of large scores would overflow.
template <int kItems>
__device__ float block_length(const float (&x)[kItems], FilterShared& shared) {
  double sum = 0.;
#pragma unroll
  for (int k = 0; k < kItems; ++k) sum += static_cast<double>(x[k]) * x[k];
  return fmaxf(static_cast<float>(sqrt(block_sum(sum, shared.sums))), 1e-12f);
}

// redundancy += weight * scores (/ their length). A term without weight is not read.
template <int kItems>
__device__ void add_term(const float* scores, float weight, const FilterParams& p, float (&redundancy)[kItems],
                         FilterShared& shared) {
  if (weight == 0.f) return;
  float term[kItems];
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const int64_t i = threadIdx.x + k * blockDim.x;
    term[k] = i < p.patches ? scores[i] : 0.f;
  }
  if (p.normalize) weight /= block_length(term, shared);
#pragma unroll
  for (int k = 0; k < kItems; ++k) redundancy[k] += weight * term[k];
}

// The full windows of a grid, in 32 bits: a grid has fewer cells than 2^31.
struct Windows {
  uint32_t side, width, rows, columns;
  __device__ __forceinline__ explicit Windows(const FilterParams& p)
      : side(static_cast<uint32_t>(min(p.window, int64_t{1} << 31))),
        width(static_cast<uint32_t>(p.grid_width)),
        rows(static_cast<uint32_t>(p.grid_height) / side),
        columns(width / side) {}
  // The window of a place, or -1 if it lies in none.
  __device__ __forceinline__ int of(int64_t place) const {
    if (place < 0 || place > INT32_MAX) return -1;
    const uint32_t row = static_cast<uint32_t>(place) / width / side;
    const uint32_t column = static_cast<uint32_t>(place) % width / side;
    return row < rows && column < columns ? static_cast<int>(row * columns + column) : -1;
  }
};

// Multiplies the highest score of each window, the lowest place among equals.
template <int kItems>
__device__ void local_penalty(const FilterParams& p, const int64_t* ids, Cell* cells, float (&redundancy)[kItems]) {
  for (int64_t i = threadIdx.x; i < filter_cells(p); i += blockDim.x) cells[i] = 0;
  __syncthreads();
  const Windows windows(p);
  const int patches = static_cast<int>(p.patches);
  const auto bid = [&](int k, int& window) -> Cell {
    const int i = threadIdx.x + k * blockDim.x;
    const int64_t place = i >= patches ? -1 : ids ? ids[i] : i;
    window = windows.of(place);
    return static_cast<Cell>(ordered(redundancy[k])) << 32 | (0xffffffffu - static_cast<uint32_t>(place));
  };
  int window;
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const Cell mine = bid(k, window);
    if (window >= 0) atomicMax(&cells[window], mine);
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const Cell mine = bid(k, window);
    if (window >= 0 && cells[window] == mine) {
      redundancy[k] = redundancy[k] > 0.f ? redundancy[k] * p.penalty : redundancy[k] / p.penalty;
    }
  }
}

// The r-th largest key (shared.prefix), and how many keys equal to it are among the r largest (shared.left): four
// passes over eight bits each.
template <int kItems>
__device__ void select_threshold(const FilterParams& p, const uint32_t (&keys)[kItems], FilterShared& shared) {
  if (threadIdx.x == 0) {
    shared.prefix = 0;
    shared.left = static_cast<int>(p.r);
  }
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = threadIdx.x; i < 256; i += blockDim.x) shared.histogram[i] = 0;
    __syncthreads();
    const uint32_t above = shift == 24 ? 0u : 0xffffffffu << (shift + 8), prefix = shared.prefix;
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      const bool exists = threadIdx.x + k * blockDim.x < p.patches;
      if (exists && (keys[k] & above) == prefix) atomicAdd(&shared.histogram[keys[k] >> shift & 255u], 1);
    }
    __syncthreads();
    if (threadIdx.x < kWarp) {  // lane l has the digits 255 - 8 l down to 248 - 8 l
      int sum = 0;
      for (int i = 0; i < 8; ++i) sum += shared.histogram[255 - 8 * threadIdx.x - i];
      int higher = sum;  // keys with a digit above this lane's, after the scan
#pragma unroll
      for (int offset = 1; offset < kWarp; offset *= 2) {
        const int below = __shfl_up_sync(kAllLanes, higher, offset);
        if (static_cast<int>(threadIdx.x) >= offset) higher += below;
      }
      higher -= sum;
      const int left = shared.left;
      __syncwarp();
      if (higher < left && left <= higher + sum) {
        for (int i = 0; i < 8; ++i) {
          const int digit = 255 - 8 * static_cast<int>(threadIdx.x) - i, here = shared.histogram[digit];
          if (left <= higher + here) {
            shared.prefix = prefix | static_cast<uint32_t>(digit) << shift;
            shared.left = left - higher;
            break;
          }
          higher += here;
        }
      }
    }
    __syncthreads();
  }
}

// Flags of this thread's items, a bit each; their ranks among all flags of the block, which are ordered by index.
template <int kItems>
__device__ void prepare_ranks(uint32_t flags, FilterShared& shared) {
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
__device__ __forceinline__ int rank_of(uint32_t flags, int k, const FilterShared& shared) {
  const uint32_t below = (1u << threadIdx.x % kWarp) - 1, votes = __ballot_sync(kAllLanes, flags >> k & 1u);
  return shared.counts[k * (blockDim.x / kWarp) + threadIdx.x / kWarp] + __popc(votes & below);
}

// After select_threshold: a bit for each of this thread's items that is among the r largest.
template <int kItems>
__device__ uint32_t select_largest(const FilterParams& p, const uint32_t (&keys)[kItems], FilterShared& shared) {
  const uint32_t threshold = shared.prefix;
  const int equal_wanted = shared.left;
  uint32_t equal = 0, chosen = 0;
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const bool exists = p.r > 0 && threadIdx.x + k * blockDim.x < p.patches;
    equal |= static_cast<uint32_t>(exists && keys[k] == threshold) << k;
    chosen |= static_cast<uint32_t>(exists && keys[k] > threshold) << k;
  }
  prepare_ranks<kItems>(equal, shared);
#pragma unroll
  for (int k = 0; k < kItems; ++k) {  // among equals the lowest indices
    const bool wanted = rank_of(equal, k, shared) < equal_wanted;
    chosen |= (equal >> k & static_cast<uint32_t>(wanted)) << k;
  }
  return chosen;
}

// kItems * blockDim.x >= patches. `p` are the params of the batch, `cells` this image's.
template <int kItems>
__device__ void filter_block(const FilterParams& p, int64_t b, Cell* cells, FilterShared& shared) {
  float redundancy[kItems] = {};
  add_term(p.patch_attention + b * p.patches, p.lam, p, redundancy, shared);
  add_term(p.class_attention + b * p.patches, p.lam - 1.f, p, redundancy, shared);
  if (p.penalty != 1.f) local_penalty(p, p.ids ? p.ids + b * p.patches : nullptr, cells, redundancy);
  uint32_t keys[kItems];
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const int64_t i = threadIdx.x + k * blockDim.x;
    keys[k] = ordered(redundancy[k]);
    if (i < p.patches) p.redundancy[b * p.patches + i] = redundancy[k];
  }
  select_threshold(p, keys, shared);
  const uint32_t chosen = select_largest(p, keys, shared);
  prepare_ranks<kItems>(chosen, shared);
  int64_t* sources = p.sources + b * p.r;
  int64_t* kept = p.kept + b * (p.patches + p.first - p.r);
  if (p.first && threadIdx.x == 0) kept[0] = 0;
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const int64_t i = threadIdx.x + k * blockDim.x;
    const int before = rank_of(chosen, k, shared);
    if (i >= p.patches) continue;
    if (chosen >> k & 1u) {
      sources[before] = i + p.first;
    } else {
      kept[p.first + i - before] = i + p.first;
    }
  }
}

}  // namespace ficoco
