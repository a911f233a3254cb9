// The largest scores of every segment, as many as it may keep.
//
// The first kernel finds the rank of every token: how many of its segment are better. Eight lanes share a token and go
// through all others, 1024 at a time by way of shared memory. The second writes those that stay in the order of their
// indices; a block owns an image. B N^2 comparisons: bound by them, and for the tokens of a picture by latency. There
// is no sort, and segments may lie in any order and number. Shared memory: 8 KB and 132 bytes.
//
// Counts and segments that do not fit together, which only the CPU reports, still give `total` distinct tokens.
#include "cuda/launch.h"
#include "cuda/utils.cuh"

namespace ficoco {
namespace {

constexpr int kThreads = 256;
constexpr int kLanes = 8;                   // of a token
constexpr int kTokens = kThreads / kLanes;  // of one block of the first kernel
constexpr int kOthers = 1024;               // in shared memory at once
constexpr int kWriteThreads = 1024;
constexpr int kWriteWarps = kWriteThreads / kWarp;

struct Ranked {
  uint32_t score;  // as `ordered` has it
  int segment;
};

__device__ __forceinline__ Ranked ranked(const TopOfSegmentsParams& p, int64_t b, int64_t i) {
  const int64_t segment = p.segments[b * p.segment_stride + i];
  const bool fits = segment >= 0 && segment < p.groups;  // else it is in no segment and stays only to fill up
  return {ordered(p.scores[b * p.tokens + i]), fits ? static_cast<int>(segment) : -1};
}

__global__ void __launch_bounds__(kThreads, 4) segment_rank_kernel(TopOfSegmentsParams p, bool* stays) {
  __shared__ __align__(16) Ranked others[kOthers];
  const int lane = threadIdx.x % kLanes, tokens = static_cast<int>(p.tokens);
  const int64_t b = blockIdx.y;
  const int i = static_cast<int>(blockIdx.x) * kTokens + static_cast<int>(threadIdx.x) / kLanes;
  const Ranked own = i < tokens ? ranked(p, b, i) : Ranked{0, -1};
  int better = 0;
  for (int j0 = 0; j0 < tokens; j0 += kOthers) {
    const int count = min(kOthers, tokens - j0);
    __syncthreads();
    for (int j = threadIdx.x; j < count; j += kThreads) others[j] = ranked(p, b, j0 + j);
    __syncthreads();
#pragma unroll 4
    for (int j = lane; j < count; j += kLanes) {
      const Ranked other = others[j];
      const bool ahead = other.score > own.score || (other.score == own.score && j0 + j < i);
      better += other.segment == own.segment && ahead;
    }
  }
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) better += __shfl_xor_sync(kAllLanes, better, offset);
  if (lane > 0 || i >= tokens) return;
  stays[b * p.tokens + i] = own.segment >= 0 && better < p.counts[b * p.groups + own.segment];
}

// Those that stay come first, in order, then the others; the first `total` are written.
__global__ void __launch_bounds__(kWriteThreads, 1) write_kept_kernel(TopOfSegmentsParams p, const bool* stays) {
  __shared__ int counts[kWriteWarps], all;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, tokens = static_cast<int>(p.tokens);
  const int64_t b = blockIdx.x;
  const bool* own = stays + b * p.tokens;
  int mine = 0;
  for (int i = threadIdx.x; i < tokens; i += kWriteThreads) mine += own[i];
  const int staying = block_sum(mine, counts);
  int before = 0;  // that stay, among tokens below i0
  for (int i0 = 0; i0 < tokens; i0 += kWriteThreads) {
    const int i = i0 + static_cast<int>(threadIdx.x);
    const bool stay = i < tokens && own[i];
    const uint32_t votes = __ballot_sync(kAllLanes, stay);
    if (lane == 0) counts[warp] = __popc(votes);
    __syncthreads();
    if (warp == 0) {
      const int sum = warp_scan(counts, kWriteWarps);
      if (lane == 0) all = sum;
    }
    __syncthreads();
    const int ahead = before + counts[warp] + __popc(votes & ((1u << lane) - 1));
    const int at = stay ? ahead : staying + i - ahead;
    if (i < tokens && at < p.total) p.kept[b * p.total + at] = i;
    before += all;
    __syncthreads();
  }
}

}  // namespace

size_t workspace_bytes(const TopOfSegmentsParams& p) {
  Pieces pieces(nullptr);
  pieces.take<bool>(p.batch, p.tokens);
  return pieces.used();
}

cudaError_t launch_top_of_segments(const TopOfSegmentsParams& p, void* workspace, cudaStream_t stream) {
  if (p.batch * p.total == 0) return cudaSuccess;
  if (p.tokens > kMaxTokens) return cudaErrorInvalidValue;
  bool* stays = Pieces(workspace).take<bool>(p.batch, p.tokens);
  segment_rank_kernel<<<dim3(ceil_div(p.tokens, kTokens), p.batch), kThreads, 0, stream>>>(p, stays);
  FICOCO_TRY(launched());
  write_kept_kernel<<<static_cast<unsigned>(p.batch), kWriteThreads, 0, stream>>>(p, stays);
  return launched();
}

}  // namespace ficoco
