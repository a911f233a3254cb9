// Tokens picked one by one, each the one with the largest gain; the objectives differ in the gain.
//
// First the cosines of all pairs, half of them (cosines.cu). Then one block an image picks: for each pick it reads a
// row of cosines, updates what it knows of every token, and finds the largest gain. Coverage reads some rows more, see
// coverage.cuh.
//
// B N^2 D FLOPs for the cosines: features are read once for every 64 tokens, B N^2 floats are written. Then B T (N + d)
// numbers with max-min and mmr (d: the latency of two barriers and a read from the second-level cache), B T^2 N FLOPs
// with log-det. Shared memory of the cosines 74 KB (float), 37 KB (halves).
#include "cuda/cosines.cuh"
#include "cuda/coverage.cuh"
#include "cuda/utils.cuh"

namespace ficoco {
namespace {

// What a block knows of its image's tokens while it picks.
struct Picking {
  const float* cosine;  // (B, N, N)
  float* value;         // (B, N) largest cosine with a picked token; what is covered; the factor of the determinant
  float* bound;         // (B, N) gains that are no longer exact
  int* computed;        // (B, N) the pick at which a bound was computed
  bool* free;           // (B, N) neither picked nor masked
  int* real;            // (B, N) real tokens first, with coverage and a mask
  float* columns;       // (B, T, N) of the Cholesky factor
};

// One image's tokens. Thread t owns t, t + kPickThreads, ...
struct Image {
  const GreedySelectParams& p;
  int64_t b;
  int n;
  const float* cosine;
  float *value, *bound, *columns;
  int* computed;
  bool* free;
  int* real;

  __device__ Image(const GreedySelectParams& p, const Picking& w)
      : p(p),
        b(blockIdx.x),
        n(static_cast<int>(p.tokens)),
        cosine(w.cosine + b * p.tokens * p.tokens),
        value(w.value + b * p.tokens),
        bound(w.bound + b * p.tokens),
        columns(w.columns + b * p.count * p.tokens),
        computed(w.computed + b * p.tokens),
        free(w.free + b * p.tokens),
        real(w.real + b * p.tokens) {}

  __device__ const float* row(int j) const { return cosine + static_cast<int64_t>(j) * n; }
  __device__ float saliency(int j) const { return p.saliency ? p.saliency[b * n + j] : 1.f; }

  template <class F>
  __device__ void each(const F& f) const {
    for (int j = threadIdx.x; j < n; j += kPickThreads) f(j);
  }

  // The free token with the largest rank(j), the lowest of equal ones, in every thread.
  template <class F>
  __device__ int best(const F& rank, BestShared& shared) const {
    uint32_t key = 0;  // below every number
    int index = INT_MAX;
    each([&](int j) {
      if (free[j]) keep_better(key, index, ordered(rank(j)), j);
    });
    warp_best(key, index);
    const int lane = threadIdx.x % kWarp;
    __syncthreads();
    if (lane == 0) {
      shared.key[threadIdx.x / kWarp] = key;
      shared.index[threadIdx.x / kWarp] = index;
    }
    __syncthreads();
    key = shared.key[lane % kPickWarps];
    index = shared.index[lane % kPickWarps];
    warp_best(key, index);
    assert(index < n && "ficoco: count is larger than the number of real tokens of a row");
    return index;
  }

  // Called by all threads; the caller has a barrier before anything reads `free` of another thread's token.
  __device__ void pick(int64_t step, int j, float gain) const {
    if (j % kPickThreads == static_cast<int>(threadIdx.x)) free[j] = false;
    if (threadIdx.x != 0) return;
    p.order[b * p.count + step] = j;
    p.gains[b * p.count + step] = gain;
  }
};

// max-min and mmr: gains from the largest cosine with a picked token.
template <bool kMmr>
__device__ void pick_by_distance(const Image& im, BestShared& shared) {
  const GreedySelectParams& p = im.p;
  if (!kMmr) {  // the first pick has the farthest nearest neighbour: a warp looks for one token's at a time
    const int lane = threadIdx.x % kWarp;
    for (int j = threadIdx.x / kWarp; j < im.n; j += kPickWarps) {
      float nearest = -INFINITY;
      for (int i = lane; i < im.n; i += kWarp) {
        if (i != j && im.free[i]) nearest = fmaxf(nearest, im.row(j)[i]);
      }
#pragma unroll
      for (int offset = 1; offset < kWarp; offset *= 2) {
        nearest = fmaxf(nearest, __shfl_xor_sync(kAllLanes, nearest, offset));
      }
      if (lane == 0) im.bound[j] = nearest == -INFINITY ? -1.f : nearest;
    }
    __syncthreads();
  }
  im.each([&](int j) { im.value[j] = -INFINITY; });
  const auto gain = [&](int64_t step, int j) {
    if (kMmr) return p.trade * im.saliency(j) - (step > 0 ? (1.f - p.trade) * im.value[j] : 0.f);
    return im.saliency(j) * (1.f - (step > 0 ? im.value[j] : im.bound[j]));
  };
  for (int64_t step = 0; step < p.count; ++step) {
    const int picked = im.best([&](int j) { return kMmr && step == 0 ? im.saliency(j) : gain(step, j); }, shared);
    im.pick(step, picked, gain(step, picked));
    const float* row = im.row(picked);
    __syncthreads();  // the first thread has read `value` of another's token
    im.each([&](int j) { im.value[j] = fmaxf(im.value[j], row[j]); });
  }
}

// Lists the real tokens, ascending, and returns how many there are. By one warp.
__device__ int list_real(const Image& im) {
  const int lane = threadIdx.x % kWarp;
  int found = 0;
  for (int base = 0; base < im.n; base += kWarp) {
    const bool real = base + lane < im.n && im.free[base + lane];
    const uint32_t votes = __ballot_sync(kAllLanes, real);
    if (real) im.real[found + __popc(votes & ((1u << lane) - 1))] = base + lane;
    found += __popc(votes);
  }
  return found;
}

// Real tokens alone are to be covered. They are listed, so that sums over them add the same numbers in the same order
// whatever is hidden.
__device__ void pick_by_coverage(const Image& im, BestShared& shared) {
  __shared__ int things;
  const GreedySelectParams& p = im.p;
  if (threadIdx.x < kWarp) {
    const int found = p.mask ? list_real(im) : im.n;
    if (threadIdx.x == 0) things = found;
  }
  im.each([&](int i) { im.value[i] = 0.f; });
  __syncthreads();
  pick_by_coverage({.candidates = im.n,
                    .things = things,
                    .rows = im.cosine,
                    .stride = im.n,
                    .columns = p.mask ? im.real : nullptr,
                    .saliency = p.saliency ? p.saliency + im.b * im.n : nullptr,
                    .covered = im.value,
                    .bound = im.bound,
                    .computed = im.computed,
                    .free = im.free,
                    .count = p.count,
                    .order = p.order + im.b * p.count,
                    .gains = p.gains + im.b * p.count},
                   shared);
}

__device__ void pick_by_determinant(const Image& im, BestShared& shared) {
  const GreedySelectParams& p = im.p;
  im.each([&](int j) { im.value[j] = im.saliency(j) * im.row(j)[j] * im.saliency(j); });
  __syncthreads();
  float first = 0.f;
  bool exhausted = false;
  for (int64_t step = 0; step < p.count; ++step) {
    int picked = -1;
    float factor = 0.f;
    if (!exhausted) {
      picked = im.best([&](int j) { return im.value[j]; }, shared);
      factor = im.value[picked];
      if (step == 0) first = factor;
      exhausted = factor < kExhausted * first || factor <= 0.f;
    }
    if (exhausted) {  // and so will be every further pick
      picked = im.best([&](int j) { return im.saliency(j); }, shared);
      factor = im.value[picked];
    }
    im.pick(step, picked, factor);
    if (exhausted) continue;
    const float *row = im.row(picked), own = im.saliency(picked), length = sqrtf(fmaxf(factor, kSmallestFactor));
    float* column = im.columns + step * im.n;
    __syncthreads();  // all threads have read `value` of another's token
    im.each([&](int j) {
      float x = own * row[j] * im.saliency(j);
#pragma unroll 4
      for (int64_t s = 0; s < step; ++s) x = fmaf(-im.columns[s * im.n + picked], im.columns[s * im.n + j], x);
      column[j] = x / length;
      im.value[j] = fmaf(-column[j], column[j], im.value[j]);
    });
  }
}

template <Objective kObjective>
__global__ void __launch_bounds__(kPickThreads, 1) pick_kernel(GreedySelectParams p, Picking w) {
  __shared__ BestShared shared;
  const Image im(p, w);
  im.each([&](int j) {
    im.free[j] = !p.mask || p.mask[im.b * im.n + j];
    assert((!im.free[j] || im.saliency(j) >= 0.f) && "ficoco::greedy_select: saliency is negative or NaN");
  });
  __syncthreads();
  if constexpr (kObjective == Objective::kMaxMin) pick_by_distance<false>(im, shared);
  if constexpr (kObjective == Objective::kMmr) pick_by_distance<true>(im, shared);
  if constexpr (kObjective == Objective::kCoverage) pick_by_coverage(im, shared);
  if constexpr (kObjective == Objective::kLogDet) pick_by_determinant(im, shared);
}

struct Workspace {
  float* cosine;
  Picking picking;
};

Workspace take(const GreedySelectParams& p, Pieces& pieces) {
  const bool by_determinant = p.objective == Objective::kLogDet;
  Workspace w{};
  w.cosine = pieces.take<float>(p.batch, p.tokens, p.tokens);
  w.picking.cosine = w.cosine;
  w.picking.value = pieces.take<float>(p.batch, p.tokens);
  w.picking.bound = pieces.take<float>(p.batch, p.tokens);
  w.picking.computed = pieces.take<int>(p.batch, p.tokens);
  w.picking.free = pieces.take<bool>(p.batch, p.tokens);
  w.picking.real = pieces.take<int>(p.objective == Objective::kCoverage && p.mask ? p.batch : 0, p.tokens);
  w.picking.columns = pieces.take<float>(by_determinant ? p.batch : 0, p.count, p.tokens);
  return w;
}

cudaError_t launch_picks(const GreedySelectParams& p, const Picking& w, cudaStream_t stream) {
  const unsigned blocks = static_cast<unsigned>(p.batch);
  switch (p.objective) {
    case Objective::kMaxMin: pick_kernel<Objective::kMaxMin><<<blocks, kPickThreads, 0, stream>>>(p, w); break;
    case Objective::kCoverage: pick_kernel<Objective::kCoverage><<<blocks, kPickThreads, 0, stream>>>(p, w); break;
    case Objective::kLogDet: pick_kernel<Objective::kLogDet><<<blocks, kPickThreads, 0, stream>>>(p, w); break;
    case Objective::kMmr: pick_kernel<Objective::kMmr><<<blocks, kPickThreads, 0, stream>>>(p, w); break;
  }
  return launched();
}

}  // namespace

size_t workspace_bytes(const GreedySelectParams& p) {
  Pieces pieces(nullptr);
  take(p, pieces);
  return pieces.used();
}

cudaError_t launch_greedy_select(const GreedySelectParams& p, void* workspace, cudaStream_t stream) {
  if (p.batch * p.count == 0) return cudaSuccess;
  if (p.tokens > kMaxPatches) return cudaErrorInvalidValue;
  Pieces pieces(workspace);
  const Workspace w = take(p, pieces);
  FICOCO_TRY(launch_pair_cosines(p.features, p.batch, p.tokens, p.width, w.cosine, stream));
  return launch_picks(p, w.picking, stream);
}

}  // namespace ficoco
