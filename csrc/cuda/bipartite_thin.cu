// Lists of tokens, thinned round by round: of every other token those leave that are most like one between them.
//
// First the cosines of all pairs (cosines.cu). Then one block an image does all rounds. A warp has a token at an
// even index at a time and reads its cosines with those at odd ones, by index, as the order of the list changes in
// every round. Then a thread has such a token, and its rank is how many are ahead of it, so nothing is sorted.
//
// B N^2 D FLOPs for the cosines. A round of a list of length L reads L^2 / 4 cosines, from the second-level cache up to
// some 3000 tokens, and L^2 / 4 scores from the first-level one: (L - T) / step rounds, which wait for each other and
// for three barriers.
#include "cuda/cosines.cuh"
#include "cuda/utils.cuh"

namespace ficoco {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarp;

struct Thinning {
  const float* cosine;  // (B, N, N)
  int *list, *next;     // (B, L) tokens, before and after a round
  uint32_t* score;      // (B, L), `ordered`
};

// Copies the real tokens of `order` to `list` and returns how many there are. By one warp.
__device__ int real_tokens(const BipartiteThinParams& p, const int64_t* order, const bool* mask, int* list) {
  const int lane = threadIdx.x % kWarp, length = static_cast<int>(p.length);
  int found = 0;
  for (int base = 0; base < length; base += kWarp) {
    const int i = base + lane;
    const int token = i < length ? static_cast<int>(order[i]) : 0;
    assert(token >= 0 && token < p.tokens && "ficoco::bipartite_thin: order holds what is no index of a token");
    const bool real = i < length && (!mask || mask[token]);
    const uint32_t votes = __ballot_sync(kAllLanes, real);
    if (real) list[found + __popc(votes & ((1u << lane) - 1))] = token;
    found += __popc(votes);
  }
  return found;
}

// score[i] for token 2 i of the list: its largest cosine with one of the `odds` tokens between.
__device__ void compute_scores(const float* cosine, int64_t tokens, const int* list, int evens, int odds,
                               uint32_t* score) {
  const int lane = threadIdx.x % kWarp;
  for (int i = threadIdx.x / kWarp; i < evens; i += kWarps) {
    const float* row = cosine + list[2 * i] * tokens;
    float best = -INFINITY;
#pragma unroll 4
    for (int j = lane; j < odds; j += kWarp) best = fmaxf(best, row[list[2 * j + 1]]);
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, offset));
    if (lane == 0) score[i] = ordered(best);
  }
}

// The list after a round in which the `leave` tokens with the highest scores leave, the earlier ones among equals.
__device__ void reorder(const int* list, const uint32_t* score, int evens, int odds, int leave, int* next) {
  for (int i = threadIdx.x; i < evens; i += kThreads) {
    const uint32_t own = score[i];
    int rank = 0;
#pragma unroll 4
    for (int other = 0; other < evens; ++other) {
      const uint32_t theirs = score[other];
      rank += theirs > own || (theirs == own && other < i);
    }
    if (rank >= leave) next[rank - leave] = list[2 * i];
  }
  for (int j = threadIdx.x; j < odds; j += kThreads) next[evens - leave + j] = list[2 * j + 1];
}

__global__ void __launch_bounds__(kThreads, 1) thin_kernel(BipartiteThinParams p, Thinning t) {
  __shared__ int real;
  const int64_t b = blockIdx.x;
  const int count = static_cast<int>(p.count);
  const float* cosine = t.cosine + b * p.tokens * p.tokens;
  int *list = t.list + b * p.length, *next = t.next + b * p.length;
  uint32_t* score = t.score + b * p.length;
  if (threadIdx.x < kWarp) {
    const int found = real_tokens(p, p.order + b * p.length, p.mask ? p.mask + b * p.tokens : nullptr, list);
    if (threadIdx.x == 0) real = found;
  }
  __syncthreads();
  int length = real;
  assert(length >= count && "ficoco::bipartite_thin: count is larger than the number of real tokens of a list");
  while (length > count) {
    const int evens = (length + 1) / 2, odds = length / 2;
    const int leave = static_cast<int>(min(p.step, static_cast<int64_t>(min(length - count, evens))));
    compute_scores(cosine, p.tokens, list, evens, odds, score);
    __syncthreads();
    reorder(list, score, evens, odds, leave, next);
    __syncthreads();
    int* before = list;
    list = next;
    next = before;
    length -= leave;
  }
  for (int i = threadIdx.x; i < count; i += kThreads) p.left[b * count + i] = list[i];
}

struct Workspace {
  float* cosine;
  Thinning thinning;
};

Workspace take(const BipartiteThinParams& p, Pieces& pieces) {
  Workspace w{};
  w.cosine = pieces.take<float>(p.batch, p.tokens, p.tokens);
  w.thinning.cosine = w.cosine;
  w.thinning.list = pieces.take<int>(p.batch, p.length);
  w.thinning.next = pieces.take<int>(p.batch, p.length);
  w.thinning.score = pieces.take<uint32_t>(p.batch, p.length);
  return w;
}

}  // namespace

size_t workspace_bytes(const BipartiteThinParams& p) {
  Pieces pieces(nullptr);
  take(p, pieces);
  return pieces.used();
}

cudaError_t launch_bipartite_thin(const BipartiteThinParams& p, void* workspace, cudaStream_t stream) {
  if (p.batch * p.count == 0) return cudaSuccess;
  if (p.tokens > kMaxPatches) return cudaErrorInvalidValue;
  Pieces pieces(workspace);
  const Workspace w = take(p, pieces);
  FICOCO_TRY(launch_pair_cosines(p.features, p.batch, p.tokens, p.width, w.cosine, stream));
  thin_kernel<<<static_cast<unsigned>(p.batch), kThreads, 0, stream>>>(p, w.thinning);
  return launched();
}

}  // namespace ficoco
