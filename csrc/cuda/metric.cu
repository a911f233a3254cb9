// The mean over heads of the keys, and class attention where there is no class token: minus the cosine between a key's
// mean over heads and the mean of those over all tokens (FiCoCo eq. 9-13).
//
// A warp owns a token and reads several heads at once. k is read once: bound by memory.
#include "cuda/logits_stats.cuh"
#include "cuda/metric.cuh"

namespace ficoco {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kChunk = 64;  // tokens that a block adds up
constexpr float kTiny = 1e-12f;

constexpr int kHeads = 4;  // reads of a lane in flight at once

// The next kPer numbers of a row of the metric.
template <class T, bool kVector>
__device__ __forceinline__ void store_metric(float* out, const float (&x)[kPer<T>], int64_t left) {
#pragma unroll
  for (int e = 0; e < kPer<T>; e += 4) {
    const Pack<float> four{x[e], x[e + 1], x[e + 2], x[e + 3]};
    store_pack<float, kVector>(out + e, four, left - e);
  }
}

// `lanes`, a power of two, share the channels of a head; a warp reads as many heads at once as its other lanes allow.
template <class T, bool kVector>
__global__ void __launch_bounds__(kThreads, 2) metric_kernel(MetricParams p, View<T> key, int lanes) {
  const int lane = threadIdx.x % kWarp, first_head = lane / lanes, heads = kWarp / lanes;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp, b = blockIdx.y;
  if (p.counters && blockIdx.x == 0 && threadIdx.x == 0) p.counters[b] = 0;
  if (n >= p.tokens) return;
  float* out = p.metric + (b * p.tokens + n) * p.width;
  const int64_t own = lane % lanes * kPer<T>, step = lanes * kPer<T>;
  const bool writes = first_head == 0, at_once = p.width <= step;  // at once: the row stays in registers
  const float share = 1.f / static_cast<float>(key.heads);
  float squares = 0.f, mean[kPer<T>];
  for (int64_t c0 = 0; c0 < p.width; c0 += step) {
    const int64_t c = c0 + own, left = p.width - c;
#pragma unroll
    for (int e = 0; e < kPer<T>; ++e) mean[e] = 0.f;
    for (int h0 = first_head; h0 < key.heads; h0 += kHeads * heads) {
      Pack<T> x[kHeads];
#pragma unroll
      for (int i = 0; i < kHeads; ++i) {
        const int h = h0 + i * heads;
        x[i] = {};
        if (left > 0 && h < key.heads) x[i] = load_pack<T, kVector>(key.row(b, h, n) + c, left);
      }
#pragma unroll
      for (int i = 0; i < kHeads; ++i) {
#pragma unroll
        for (int e = 0; e < kPer<T>; ++e) mean[e] += to_float(x[i].x[e]);
      }
    }
    for (int offset = lanes; offset < kWarp; offset *= 2) {
#pragma unroll
      for (int e = 0; e < kPer<T>; ++e) mean[e] += __shfl_xor_sync(kAllLanes, mean[e], offset);
    }
#pragma unroll
    for (int e = 0; e < kPer<T>; ++e) {
      mean[e] *= share;
      if (writes) squares += mean[e] * mean[e];
    }
    if (writes && left > 0 && !(p.unit && at_once)) store_metric<T, kVector>(out + c, mean, left);
  }
  if (!p.unit) return;
  const float inverse = 1.f / fmaxf(sqrtf(warp_sum(squares)), kTiny);
  if (!writes) return;
  if (at_once) {
#pragma unroll
    for (int e = 0; e < kPer<T>; ++e) mean[e] *= inverse;
    if (own < p.width) store_metric<T, kVector>(out + own, mean, p.width - own);
    return;
  }
  for (int64_t c = own; c < p.width; c += step) {  // each lane scales what it wrote
#pragma unroll
    for (int e = 0; e < kPer<T>; ++e) {
      if (c + e < p.width) out[c + e] *= inverse;
    }
  }
}

// sums[b][chunk][c] of the metric over 64 tokens.
__global__ void __launch_bounds__(kThreads, 2)
    sum_kernel(const float* metric, int64_t tokens, int64_t width, float* sums) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kChunk, end = min(begin + kChunk, tokens), b = blockIdx.y;
  for (int64_t c = threadIdx.x; c < width; c += kThreads) {
    float total = 0.f;
    for (int64_t n = begin; n < end; ++n) total += metric[(b * tokens + n) * width + c];
    sums[(b * gridDim.x + blockIdx.x) * width + c] = total;
  }
}

__global__ void __launch_bounds__(kThreads, 2)
    cosine_kernel(const float* metric, const float* sums, int64_t tokens, int64_t width, int64_t chunks, float* out) {
  const int lane = threadIdx.x % kWarp;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp, b = blockIdx.y;
  if (n >= tokens) return;
  const float* own = metric + (b * tokens + n) * width;
  float dot = 0.f, squares = 0.f, mean_squares = 0.f;
  for (int64_t c = lane; c < width; c += kWarp) {
    float mean = 0.f;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) mean += sums[(b * chunks + chunk) * width + c];
    mean /= static_cast<float>(tokens);
    dot = fmaf(mean, own[c], dot);
    squares = fmaf(own[c], own[c], squares);
    mean_squares = fmaf(mean, mean, mean_squares);
  }
  const float length = fmaxf(sqrtf(warp_sum(squares)), kTiny),
              mean_length = fmaxf(sqrtf(warp_sum(mean_squares)), kTiny);
  dot = warp_sum(dot);
  if (lane == 0) out[b * tokens + n] = -dot / (length * mean_length);
}

struct Workspace {
  float *metric, *sums;
};

Workspace take(const AttentionStatsParams& p, Pieces& pieces) {
  Workspace w{};
  w.metric = pieces.take<float>(p.batch, p.tokens, p.width);
  w.sums = pieces.take<float>(p.batch, ceil_div(p.tokens, kChunk), p.width);
  return w;
}

}  // namespace

cudaError_t launch_metric(const MetricParams& p, cudaStream_t stream) {
  return with_type(p.key.dtype, vectorised(p.key, p.width), [&](auto type, auto vector) {
    using T = decltype(type);
    const dim3 grid(ceil_div(p.tokens, kWarps), p.batch);
    int lanes = 1;
    while (lanes < kWarp && lanes * kPer<T> < p.width) lanes *= 2;
    metric_kernel<T, decltype(vector)::value><<<grid, kThreads, 0, stream>>>(p, view<T>(p.key), lanes);
    return launched();
  });
}

size_t key_stats_workspace(const AttentionStatsParams& p) {
  Pieces pieces(nullptr);
  take(p, pieces);
  return pieces.used();
}

cudaError_t launch_key_stats(const AttentionStatsParams& p, void* workspace, cudaStream_t stream) {
  Pieces pieces(workspace);
  const Workspace w = take(p, pieces);
  FICOCO_TRY(launch_metric({p.key, p.batch, p.tokens, p.width, false, w.metric}, stream));
  const dim3 chunks(ceil_div(p.tokens, kChunk), p.batch), tokens(ceil_div(p.tokens, kWarps), p.batch);
  sum_kernel<<<chunks, kThreads, 0, stream>>>(w.metric, p.tokens, p.width, w.sums);
  FICOCO_TRY(launched());
  cosine_kernel<<<tokens, kThreads, 0, stream>>>(w.metric, w.sums, p.tokens, p.width, chunks.x, p.class_attention);
  return launched();
}

}  // namespace ficoco
