// Tokens picked one by one, each the one that covers most of what those before leave uncovered.
//
// One block an image. It computes every gain once, which reads the whole cover: B N R numbers, and that bounds it. For
// each pick it then computes few gains again, as coverage.cuh says. Beside the cover it has R + 2 N numbers of
// workspace an image and 144 bytes of shared memory. Blocks of one image cannot share the first pass: it would take a
// second kernel, and batches fill the multiprocessors.
#include "cuda/coverage.cuh"

namespace ficoco {
namespace {

struct Covering {
  float *covered, *bound;  // (B, R), (B, N)
  int* computed;           // (B, N)
  bool* free;              // (B, N)
};

__global__ void __launch_bounds__(kPickThreads, 1) cover_kernel(GreedyCoverParams p, Covering w) {
  __shared__ BestShared shared;
  const int64_t b = blockIdx.x;
  const int n = static_cast<int>(p.tokens), things = static_cast<int>(p.things);
  const Coverage c{.candidates = n,
                   .things = things,
                   .rows = static_cast<const float*>(p.cover.data) + b * p.cover.stride_b,
                   .stride = p.cover.stride_n,
                   .columns = nullptr,
                   .saliency = nullptr,
                   .covered = w.covered + b * things,
                   .bound = w.bound + b * n,
                   .computed = w.computed + b * n,
                   .free = w.free + b * n,
                   .count = p.count,
                   .order = p.order + b * p.count,
                   .gains = p.gains + b * p.count};
  for (int j = threadIdx.x; j < n; j += kPickThreads) c.free[j] = !p.mask || p.mask[b * n + j];
  for (int i = threadIdx.x; i < things; i += kPickThreads) c.covered[i] = 0.f;
  __syncthreads();
  pick_by_coverage(c, shared);
}

Covering take(const GreedyCoverParams& p, Pieces& pieces) {
  Covering w{};
  w.covered = pieces.take<float>(p.batch, p.things);
  w.bound = pieces.take<float>(p.batch, p.tokens);
  w.computed = pieces.take<int>(p.batch, p.tokens);
  w.free = pieces.take<bool>(p.batch, p.tokens);
  return w;
}

}  // namespace

size_t workspace_bytes(const GreedyCoverParams& p) {
  Pieces pieces(nullptr);
  take(p, pieces);
  return pieces.used();
}

cudaError_t launch_greedy_cover(const GreedyCoverParams& p, void* workspace, cudaStream_t stream) {
  if (p.batch * p.count == 0) return cudaSuccess;
  if (p.tokens > kMaxPatches) return cudaErrorInvalidValue;
  Pieces pieces(workspace);
  const Covering w = take(p, pieces);
  cover_kernel<<<static_cast<unsigned>(p.batch), kPickThreads, 0, stream>>>(p, w);
  return launched();
}

}  // namespace ficoco
