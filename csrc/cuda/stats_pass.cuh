// One read of all patch rows of q or k: their sum over tokens, and their inner products with up to two vectors.
//
// A block owns 128 tokens (32 where there are few blocks and no sums over tokens) and 32 packs of 16 bytes of the
// concatenated heads. A warp takes tokens in turn, a lane owns one pack. Sums over tokens and over packs are written as
// partial results, which a reader adds up in a fixed order.
#pragma once
#include <algorithm>

#include "cuda/utils.cuh"

namespace ficoco {

constexpr int kPassTokens = 128;
constexpr int kPassThreads = 256;
constexpr int kPassBatch = 4;        // reads of a lane in flight at once
constexpr int kFewTokens = 32;       // of a block of a small grid, where nothing is summed over tokens
constexpr int64_t kFewPasses = 128;  // blocks of 128 tokens that make a small grid

// Counters of an image, one for the tokens of a block.
__host__ __device__ inline int64_t pass_counters(int64_t tokens) { return ceil_div(tokens, kFewTokens); }

// Partial results of one pass over rows with `channels` = heads * width.
struct PassShape {
  int64_t packs_per_head, packs, slices, chunks;
};

inline PassShape pass_shape(const Rows& rows, int64_t tokens, int64_t width) {
  const int64_t per = 16 / size_of(rows.dtype), packs_per_head = ceil_div(width, per);
  const int64_t packs = packs_per_head * rows.heads, at_least = 1;  // without channels the sums are still written
  return {std::max(packs_per_head, at_least), packs, std::max(ceil_div(packs, kWarp), at_least),
          ceil_div(tokens, kPassTokens)};
}

// Sum over the patches of rows of `heads` heads, in chunks: [b][chunk][head * width + c].
struct PartialSums {
  float* data;
  int64_t chunks, heads;
};

struct PassParams {
  int64_t tokens, width, first;
  int64_t packs_per_head, packs;
  int block_tokens;
  float* sums;        // (B, chunks, heads * width) sums over the block's patches, or nullptr
  float* class_dots;  // (B, slices, P) with the class token's query, or nullptr
  float* mean_dots;   // (B, slices, P) with `mean`, or nullptr
  PartialSums mean;
  uint32_t* counters;        // (B, pass_counters), set to 0 for the second pass, or nullptr
  uint32_t* later_counters;  // (B): set to 0 for later kernels, or nullptr
};

// Channel (h, c) of the class token's query, summed over the query heads that share key head h.
template <class T, bool kVector>
__device__ __forceinline__ void class_vector(const View<T>& query, const PassParams& p, int64_t b, int64_t h,
                                             int64_t heads, int64_t c, float (&out)[kPer<T>]) {
  const int64_t group = query.heads / heads;
  for (int64_t g = 0; g < group; ++g) {
    const Pack<T> pack = load_pack<T, kVector>(query.row(b, h * group + g, 0) + c, p.width - c);
#pragma unroll
    for (int e = 0; e < kPer<T>; ++e) out[e] += to_float(pack.x[e]);
  }
}

// The same of the summed rows: added over shared heads for keys, looked up for queries.
template <class T, bool kVector>
__device__ __forceinline__ void mean_vector(const PassParams& p, int64_t b, int64_t h, int64_t heads, int64_t c,
                                            float (&out)[kPer<T>]) {
  const int64_t own = p.mean.heads, group = own > heads ? own / heads : 1;
  const int chunks = static_cast<int>(p.mean.chunks);
  for (int64_t g = 0; g < group; ++g) {
    const int64_t head = own > heads ? h * group + g : own == heads ? h : h * own / heads;
    const float* from = p.mean.data + (b * p.mean.chunks * own + head) * p.width + c;
    const int64_t step = own * p.width;
#pragma unroll 4
    for (int chunk = 0; chunk < chunks; ++chunk, from += step) {
#pragma unroll
      for (int e = 0; e < kPer<T>; e += 4) {
        const Pack<float> four = load_pack<float, kVector>(from + e, p.width - c - e);
#pragma unroll
        for (int f = 0; f < 4; ++f) out[e + f] += four.x[f];
      }
    }
  }
}

template <class T, bool kVector, bool kSum, bool kClass, bool kMean>
__device__ void stats_pass(const PassParams& p, const View<T>& rows, const View<T>& query) {
  __shared__ float warp_sums[kSum ? kPassThreads / kWarp : 1][kWarp * kPer<T> + 1];
  const int64_t chunk = blockIdx.x, slice = blockIdx.y, b = blockIdx.z;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  constexpr int kWarps = kPassThreads / kWarp;
  const uint32_t per_head = static_cast<uint32_t>(p.packs_per_head), pack = static_cast<uint32_t>(slice) * kWarp + lane;
  const int64_t h = pack / per_head, c = pack % per_head * kPer<T>;
  const bool mine = pack < p.packs;
  const T* column = rows.row(b, mine ? h : 0, 0) + c;
  if (slice == 0 && p.counters) {
    const int counters = static_cast<int>(pass_counters(p.tokens)), step = static_cast<int>(gridDim.x) * kPassThreads;
    for (int i = static_cast<int>(chunk) * kPassThreads + threadIdx.x; i < counters; i += step) {
      p.counters[b * counters + i] = 0;
    }
    if (chunk == 0 && threadIdx.x == 0 && p.later_counters) p.later_counters[b] = 0;
  }
  float sum[kPer<T>] = {}, with_class[kPer<T>] = {}, with_mean[kPer<T>] = {};
  if (kClass && mine) class_vector<T, kVector>(query, p, b, h, rows.heads, c, with_class);
  if (kMean && mine) mean_vector<T, kVector>(p, b, h, rows.heads, c, with_mean);
  const int begin = static_cast<int>(chunk) * p.block_tokens;
  const int end = min(begin + p.block_tokens, static_cast<int>(p.tokens));
  const int first = static_cast<int>(p.first);
  const int64_t dots = (b * gridDim.y + slice) * (p.tokens - p.first);
  for (int n0 = max(begin, first) + warp; n0 < end; n0 += kPassBatch * kWarps) {
    Pack<T> x[kPassBatch];
#pragma unroll
    for (int i = 0; i < kPassBatch; ++i) {
      const int n = n0 + i * kWarps;
      x[i] = {};
      if (mine && n < end) x[i] = load_pack<T, kVector>(column + n * rows.stride_n, p.width - c);
    }
#pragma unroll
    for (int i = 0; i < kPassBatch; ++i) {
      float class_dot = 0.f, mean_dot = 0.f;
#pragma unroll
      for (int e = 0; e < kPer<T>; ++e) {
        const float value = to_float(x[i].x[e]);
        if (kSum) sum[e] += value;
        if (kClass) class_dot = fmaf(value, with_class[e], class_dot);
        if (kMean) mean_dot = fmaf(value, with_mean[e], mean_dot);
      }
      if (kClass) class_dot = warp_sum(class_dot);
      if (kMean) mean_dot = warp_sum(mean_dot);
      const int n = n0 + i * kWarps;
      if (lane != 0 || n >= end) continue;
      if (kClass) p.class_dots[dots + n - first] = class_dot;
      if (kMean) p.mean_dots[dots + n - first] = mean_dot;
    }
  }
  if constexpr (kSum) {
#pragma unroll
    for (int e = 0; e < kPer<T>; ++e) warp_sums[warp][lane * kPer<T> + e] = sum[e];
    __syncthreads();
    for (int i = threadIdx.x; i < kWarp * kPer<T>; i += kPassThreads) {
      const uint32_t of = static_cast<uint32_t>(slice) * kWarp + i / kPer<T>;
      const int64_t head = of / per_head, channel = of % per_head * kPer<T> + i % kPer<T>;
      if (of >= p.packs || channel >= p.width) continue;
      float total = 0.f;
      for (int w = 0; w < kWarps; ++w) total += warp_sums[w][i];
      p.sums[((b * gridDim.x + chunk) * rows.heads + head) * p.width + channel] = total;
    }
  }
}

// Of patches begin + t, begin + t + blockDim.x, .. below `end`, of thread t: factor * sum of dots[slice][patch]. The
// tail of a pass, so all reads of four slices are in flight at once.
template <int kItems>
__device__ __forceinline__ void add_slices(const float* dots, int64_t slices, int64_t patches, int begin, int end,
                                           float factor, float (&out)[kItems]) {
  const int all = static_cast<int>(slices);
#pragma unroll
  for (int k = 0; k < kItems; ++k) out[k] = 0.f;
#pragma unroll 4
  for (int slice = 0; slice < all; ++slice) {
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      const int i = begin + threadIdx.x + k * blockDim.x;
      if (i < end) out[k] += dots[slice * patches + i];
    }
  }
#pragma unroll
  for (int k = 0; k < kItems; ++k) out[k] *= factor;
}

}  // namespace ficoco
