// Mean over heads of the keys, and class attention where there is no class token: minus the cosine between a key's mean
// over heads and the mean of those over all tokens (FiCoCo eq. 9-13). One warp a token; k is read once: bound by
// memory.
#include "cuda/logits_stats.cuh"
#include "cuda/metric.cuh"

namespace ficoco {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kChunk = 64;  // tokens that a block adds up
constexpr float kTiny = 1e-12f;

template <class T, bool kVector>
__global__ void __launch_bounds__(kThreads, 2) metric_kernel(MetricParams p, View<T> key) {
  const int lane = threadIdx.x % kWarp;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp, b = blockIdx.y;
  if (p.counters && blockIdx.x == 0 && threadIdx.x == 0) p.counters[b] = 0;
  if (n >= p.tokens) return;
  float* out = p.metric + (b * p.tokens + n) * p.width;
  float squares = 0.f;
  for (int64_t c = lane * kPer<T>; c < p.width; c += kWarp * kPer<T>) {
    float mean[kPer<T>] = {};
    for (int h = 0; h < key.heads; ++h) {
      const Pack<T> x = load_pack<T, kVector>(key.row(b, h, n) + c, p.width - c);
#pragma unroll
      for (int e = 0; e < kPer<T>; ++e) mean[e] += to_float(x.x[e]);
    }
#pragma unroll
    for (int e = 0; e < kPer<T>; ++e) {
      mean[e] /= static_cast<float>(key.heads);
      squares += mean[e] * mean[e];
      if (c + e < p.width) out[c + e] = mean[e];
    }
  }
  if (!p.unit) return;
  const float length = fmaxf(sqrtf(warp_sum(squares)), kTiny);
  for (int64_t c = lane * kPer<T>; c < p.width; c += kWarp * kPer<T>) {  // each lane divides what it wrote
#pragma unroll
    for (int e = 0; e < kPer<T>; ++e) {
      if (c + e < p.width) out[c + e] /= length;
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

Workspace take(const StatsParams& p, Pieces& pieces) {
  Workspace w{};
  w.metric = pieces.take<float>(p.batch * p.tokens * p.width);
  w.sums = pieces.take<float>(p.batch * ceil_div(p.tokens, kChunk) * p.width);
  return w;
}

}  // namespace

cudaError_t launch_metric(const MetricParams& p, cudaStream_t stream) {
  return with_type(p.key.dtype, vectorised(p.key, p.width), [&](auto type, auto vector) {
    using T = decltype(type);
    const dim3 grid(ceil_div(p.tokens, kWarps), p.batch);
    metric_kernel<T, decltype(vector)::value><<<grid, kThreads, 0, stream>>>(p, view<T>(p.key));
    return launched();
  });
}

size_t key_stats_workspace(const StatsParams& p) {
  Pieces pieces(nullptr);
  take(p, pieces);
  return pieces.used();
}

cudaError_t launch_key_stats(const StatsParams& p, void* workspace, cudaStream_t stream) {
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
