// The r most redundant patches.
//
// A block owns an image, and the scores stay in registers. The best of each window is found by integer atomicMax, whose
// result does not depend on the order. The r-th score is found by bisection, the indices by prefix sums.
//
// Reads 8 P bytes and writes 12 P an image: bound by latency. Shared memory: 3.2 KB, and 8 bytes a window.
#include "cuda/filter.cuh"

namespace ficoco {
namespace {

constexpr int64_t kSharedCells = 4096;  // more windows than this are kept in global memory

template <int kItems, int kThreads>
__global__ void __launch_bounds__(kThreads, 1) filter_kernel(FilterParams p, Cell* cells) {
  __shared__ FilterShared shared;
  extern __shared__ Cell shared_cells[];
  const int64_t b = blockIdx.x;
  float patch[kItems], cls[kItems];
  load_scores(p.patch_attention + b * p.patches, p.lam, static_cast<int>(p.patches), patch);
  load_scores(p.class_attention + b * p.patches, p.lam - 1.f, static_cast<int>(p.patches), cls);
  filter_block<kItems>(p, b, patch, cls, cells ? cells + b * filter_cells(p) : shared_cells, shared);
}

Cell* pieces(const FilterParams& p, Pieces& all) {
  return filter_cells(p) > kSharedCells ? all.take<Cell>(p.batch, filter_cells(p)) : nullptr;
}

}  // namespace

size_t workspace_bytes(const FilterParams& p) {
  Pieces all(nullptr);
  pieces(p, all);
  return all.used();
}

cudaError_t launch_filter(const FilterParams& p, void* workspace, cudaStream_t stream) {
  if (p.batch == 0) return cudaSuccess;
  if (p.patches > kMaxPatches) return cudaErrorInvalidValue;
  Pieces all(workspace);
  Cell* cells = pieces(p, all);
  const size_t shared = cells ? 0 : filter_cells(p) * sizeof(Cell);
  const unsigned blocks = static_cast<unsigned>(p.batch);
  if (p.patches <= 1024) {
    filter_kernel<4, 256><<<blocks, 256, shared, stream>>>(p, cells);
  } else if (p.patches <= 4096) {
    filter_kernel<4, 1024><<<blocks, 1024, shared, stream>>>(p, cells);
  } else {
    filter_kernel<16, 1024><<<blocks, 1024, shared, stream>>>(p, cells);
  }
  return launched();
}

}  // namespace ficoco
