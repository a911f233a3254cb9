// Filter of one image by one block: scores in registers, selection by bisection, compaction in ascending order.
#pragma once
#include "cuda/select.cuh"
#include "cuda/utils.cuh"

namespace ficoco {

struct FilterShared {
  double sums[2][kWarp];
  SelectShared select;
};

using Cell = unsigned long long;  // the best of a window: score above, complement of its cell below

inline __host__ __device__ int64_t filter_cells(const FilterParams& p) {
  return p.penalty == 1.f ? 0 : (p.grid_height / p.window) * (p.grid_width / p.window);
}

// This thread's scores of an image. A term without weight is not read.
template <int kItems>
__device__ __forceinline__ void load_scores(const float* scores, float weight, int patches, float (&out)[kItems]) {
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const int i = threadIdx.x + k * blockDim.x;
    out[k] = weight != 0.f && i < patches ? scores[i] : 0.f;
  }
}

// Lengths of the two vectors whose entries the block holds. In double: squares of large scores would overflow.
template <int kItems>
__device__ void block_lengths(const float (&x)[kItems], const float (&y)[kItems], FilterShared& shared, float& of_x,
                              float& of_y) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
  double sum_x = 0., sum_y = 0.;
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    sum_x += static_cast<double>(x[k]) * x[k];
    sum_y += static_cast<double>(y[k]) * y[k];
  }
  sum_x = warp_sum(sum_x);
  sum_y = warp_sum(sum_y);
  if (lane == 0) {
    shared.sums[0][warp] = sum_x;
    shared.sums[1][warp] = sum_y;
  }
  __syncthreads();
  sum_x = warp_sum(lane < warps ? shared.sums[0][lane] : 0.);
  sum_y = warp_sum(lane < warps ? shared.sums[1][lane] : 0.);
  of_x = fmaxf(static_cast<float>(sqrt(sum_x)), 1e-12f);
  of_y = fmaxf(static_cast<float>(sqrt(sum_y)), 1e-12f);
}

// The full windows of a grid, in 32 bits: a grid has fewer cells than 2^31.
struct Windows {
  uint32_t side, width, rows, columns;
  __device__ __forceinline__ explicit Windows(const FilterParams& p)
      : side(static_cast<uint32_t>(min(p.window, int64_t{1} << 31))),
        width(static_cast<uint32_t>(p.grid_width)),
        rows(static_cast<uint32_t>(p.grid_height) / side),
        columns(width / side) {}
  // The window of a cell of the grid, or -1 if it is in none.
  __device__ __forceinline__ int of(int64_t cell) const {
    if (cell < 0 || cell > INT32_MAX) return -1;
    const uint32_t row = static_cast<uint32_t>(cell) / width / side;
    const uint32_t column = static_cast<uint32_t>(cell) % width / side;
    return row < rows && column < columns ? static_cast<int>(row * columns + column) : -1;
  }
};

// Applies the penalty to the highest score of each window; among equals, to the lowest cell.
template <int kItems>
__device__ void local_penalty(const FilterParams& p, const int64_t* ids, Cell* cells, float (&redundancy)[kItems]) {
  for (int64_t i = threadIdx.x; i < filter_cells(p); i += blockDim.x) cells[i] = 0;
  __syncthreads();
  const Windows windows(p);
  const int patches = static_cast<int>(p.patches);
  const auto bid = [&](int k, int& window) -> Cell {
    const int i = threadIdx.x + k * blockDim.x;
    const int64_t cell = i >= patches ? -1 : ids ? ids[i] : i;
    window = windows.of(cell);
    return static_cast<Cell>(ordered(redundancy[k])) << 32 | (0xffffffffu - static_cast<uint32_t>(cell));
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

// Chooses in one image, of which the block has the scores: thread t those of patches t, t + blockDim.x, .., 0 where
// there are none. `p` are the params of the batch, `cells` this image's. Returns a bit for each of this thread's
// patches that leaves; their ranks are prepared.
template <int kItems>
__device__ uint32_t choose_block(const FilterParams& p, int64_t b, const float (&patch)[kItems],
                                 const float (&cls)[kItems], Cell* cells, FilterShared& shared) {
  float patch_weight = p.lam, class_weight = p.lam - 1.f;
  if (p.normalize) {
    float patch_length, class_length;
    block_lengths(patch, cls, shared, patch_length, class_length);
    patch_weight /= patch_length;
    class_weight /= class_length;
  }
  float redundancy[kItems] = {};
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    if (p.lam != 0.f) redundancy[k] += patch_weight * patch[k];
    if (p.lam != 1.f) redundancy[k] += class_weight * cls[k];
  }
  if (p.penalty != 1.f) local_penalty(p, p.ids ? p.ids + b * p.patches : nullptr, cells, redundancy);
  const int patches = static_cast<int>(p.patches);
  uint32_t keys[kItems];
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const int i = threadIdx.x + k * blockDim.x;
    keys[k] = i < patches ? ordered(redundancy[k]) : 0;
    if (i < patches) p.redundancy[b * p.patches + i] = redundancy[k];
  }
  return select_largest(patches, static_cast<int>(p.r), keys, shared.select);
}

// The same, and writes which patches leave and which stay.
template <int kItems>
__device__ void filter_block(const FilterParams& p, int64_t b, const float (&patch)[kItems], const float (&cls)[kItems],
                             Cell* cells, FilterShared& shared) {
  const uint32_t chosen = choose_block(p, b, patch, cls, cells, shared);
  const int patches = static_cast<int>(p.patches), first = static_cast<int>(p.first);
  int64_t* sources = p.sources + b * p.r;
  int64_t* kept = p.kept + b * (p.patches + p.first - p.r);
  if (p.first && threadIdx.x == 0) kept[0] = 0;
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const int i = threadIdx.x + k * blockDim.x;
    const int before = rank_of(chosen, k, shared.select);
    if (i >= patches) continue;
    if (chosen >> k & 1u) {
      sources[before] = i + first;
    } else {
      kept[first + i - before] = i + first;
    }
  }
}

}  // namespace ficoco
