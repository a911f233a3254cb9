// Merges every source into its targets. A warp owns one survivor: it looks through the image's edges for those that end
// there and adds their sources in the order of the edges, in fp32. No atomics, no sorting; most survivors receive
// nothing and are copied. One more block of each image writes the source map.
//
// Tokens are read once and written once, (N + M) C elements, 16 bytes at a time: bound by memory. 2 r k C FLOPs an
// image. r = 0 is a plain copy. No shared memory.
#include "cuda/utils.cuh"

namespace ficoco {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

__device__ void write_source_map(const CompressParams& p, int64_t b) {
  int64_t* map = p.source_map + b * p.count;
  for (int64_t i = threadIdx.x; i < p.count; i += kThreads) map[i] = -1;  // a token that neither list names
  __syncthreads();
  for (int64_t j = threadIdx.x; j < p.kept_count; j += kThreads) {
    const int64_t kept = p.kept[b * p.kept_count + j];
    assert(kept >= 0 && kept < p.count && "ficoco::compress: a kept index is no token");
    map[kept] = j;
  }
  for (int64_t i = threadIdx.x; i < p.r; i += kThreads) {
    const int64_t edge = (b * p.r + i) * p.k, source = p.sources[b * p.r + i];
    assert(source >= 0 && source < p.count && "ficoco::compress: a source is no token");
    int64_t largest = 0;
    for (int64_t t = 1; t < p.k; ++t) largest = p.weights[edge + t] > p.weights[edge + largest] ? t : largest;
    const int64_t target = p.k ? p.targets[edge + largest] : -1;
    assert(target < p.kept_count && "ficoco::compress: a target is no survivor");
    map[source] = target;
  }
}

// Calls visit(edge) for each edge of the image that ends in survivor j, in order. All lanes call it.
template <class Visit>
__device__ __forceinline__ void incoming(const CompressParams& p, int64_t b, int64_t j, const Visit& visit) {
  const int64_t edges = p.r * p.k;
  for (int64_t base = 0; base < edges; base += kWarp) {
    const int64_t edge = base + threadIdx.x % kWarp;
    uint32_t hits = __ballot_sync(kAllLanes, edge < edges && p.targets[b * edges + edge] == j);
    for (; hits; hits &= hits - 1) visit(base + __ffs(static_cast<int>(hits)) - 1);
  }
}

// What survivor j weighs: the divisor of its mean, and the original tokens it will stand for.
struct Mass {
  float own, divisor, size;
  bool receives;
};

__device__ __forceinline__ Mass mass_of(const CompressParams& p, int64_t b, int64_t j, int64_t kept) {
  const auto size = [&](int64_t i) { return p.size ? p.size[b * p.count + i] : 1.f; };
  Mass mass{p.size_weighted ? size(kept) : 1.f, 0.f, size(kept), false};
  mass.divisor = mass.own;
  incoming(p, b, j, [&](int64_t edge) {
    const int64_t source = p.sources[b * p.r + edge / p.k];
    assert(source >= 0 && source < p.count && "ficoco::compress: a source is no token");
    const float weight = p.weights[b * p.r * p.k + edge], moved = weight * size(source);
    mass.divisor += p.size_weighted ? moved : weight;
    mass.size += moved;
    mass.receives = true;
  });
  return mass;
}

template <class T, bool kVector>
__global__ void __launch_bounds__(kThreads, 2) compress_kernel(CompressParams p, View<T> tokens) {
  const int64_t b = blockIdx.y;
  if (blockIdx.x == gridDim.x - 1) {
    write_source_map(p, b);
    return;
  }
  const int64_t j = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (j >= p.kept_count) return;
  const int lane = threadIdx.x % kWarp;
  const int64_t kept = p.kept[b * p.kept_count + j];
  assert(kept >= 0 && kept < p.count && "ficoco::compress: a kept index is no token");
  const T* from = tokens.row(b, 0, kept);
  T* to = static_cast<T*>(p.out) + (b * p.kept_count + j) * p.channels;
  const Mass mass = mass_of(p, b, j, kept);
  if (lane == 0) p.out_size[b * p.kept_count + j] = mass.size;
  constexpr int64_t kStep = kWarp * kPer<T>;
  if (!mass.receives) {
#pragma unroll 4
    for (int64_t c = lane * kPer<T>; c < p.channels; c += kStep) {
      store_pack<T, kVector>(to + c, load_pack<T, kVector>(from + c, p.channels - c), p.channels - c);
    }
    return;
  }
  for (int64_t c0 = 0; c0 < p.channels; c0 += kStep) {  // all lanes go through `incoming` together
    const int64_t c = c0 + lane * kPer<T>, left = p.channels - c;
    const bool mine = left > 0;
    float sum[kPer<T>] = {};
    Pack<T> x = {};
    if (mine) x = load_pack<T, kVector>(from + c, left);
#pragma unroll
    for (int e = 0; e < kPer<T>; ++e) sum[e] = mass.own * to_float(x.x[e]);
    incoming(p, b, j, [&](int64_t edge) {
      const int64_t source = p.sources[b * p.r + edge / p.k];
      float share = p.weights[b * p.r * p.k + edge];
      if (p.size_weighted && p.size) share *= p.size[b * p.count + source];
      if (mine) x = load_pack<T, kVector>(tokens.row(b, 0, source) + c, left);
#pragma unroll
      for (int e = 0; e < kPer<T>; ++e) sum[e] = fmaf(share, to_float(x.x[e]), sum[e]);
    });
#pragma unroll
    for (int e = 0; e < kPer<T>; ++e) x.x[e] = from_float<T>(sum[e] / mass.divisor);
    if (mine) store_pack<T, kVector>(to + c, x, left);
  }
}

}  // namespace

cudaError_t launch_compress(const CompressParams& p, cudaStream_t stream) {
  if (p.batch == 0) return cudaSuccess;
  const bool aligned = reinterpret_cast<uintptr_t>(p.out) % 16 == 0;
  return with_type(p.tokens.dtype, aligned && vectorised(p.tokens, p.channels), [&](auto type, auto vector) {
    using T = decltype(type);
    const dim3 grid(ceil_div(p.kept_count, kWarps) + 1, p.batch);
    compress_kernel<T, decltype(vector)::value><<<grid, kThreads, 0, stream>>>(p, view<T>(p.tokens));
    return launched();
  });
}

}  // namespace ficoco
