// attention_stats: picks the kernels for each case, and computes the statistics of a given map.
//
// Row means: one warp a row. Column means: a block adds up 64 rows, then a second kernel adds up the blocks.
//
// Reads the map once, 4 H N^2 bytes (float): bound by memory.
#include "cuda/logits_stats.cuh"

namespace ficoco {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kRows = 64;  // map rows that a block adds up for the column means

// One warp a row of the map: its mean over patches and heads; the class token's row is copied out by all.
template <class T>
__global__ void __launch_bounds__(kThreads, 2) row_kernel(AttentionStatsMapParams p, View<T> attn) {
  const int lane = threadIdx.x % kWarp;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp, b = blockIdx.y;
  const int64_t patches = p.tokens - p.first;
  if (row >= p.tokens) return;
  if (row < p.first) {
    for (int64_t j = lane; j < patches; j += kWarp) {
      float sum = 0.f;
      for (int h = 0; h < attn.heads; ++h) sum += to_float(attn.row(b, h, 0)[p.first + j]);
      p.class_attention[b * patches + j] = sum / static_cast<float>(attn.heads);
    }
    return;
  }
  if (!p.first && lane == 0) p.class_attention[b * patches + row] = 0.f;
  if (!p.patches || p.column) return;
  float sum = 0.f;
  for (int h = 0; h < attn.heads; ++h) {
    const T* x = attn.row(b, h, row) + p.first;
    for (int64_t j = lane; j < patches; j += kWarp) sum += to_float(x[j]);
  }
  sum = warp_sum(sum);
  const float cells = static_cast<float>(attn.heads) * static_cast<float>(patches);
  if (lane == 0) p.patch_attention[b * patches + row - p.first] = sum / cells;
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2) column_kernel(AttentionStatsMapParams p, View<T> attn, float* partial) {
  const int64_t j = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, chunk = blockIdx.y, b = blockIdx.z;
  const int64_t patches = p.tokens - p.first, begin = p.first + chunk * kRows;
  if (j >= patches) return;
  float sum = 0.f;
  for (int h = 0; h < attn.heads; ++h) {
    for (int64_t i = begin; i < min(begin + kRows, p.tokens); ++i) sum += to_float(attn.row(b, h, i)[p.first + j]);
  }
  partial[(b * gridDim.y + chunk) * patches + j] = sum;
}

__global__ void __launch_bounds__(kThreads, 2)
    add_kernel(const float* partial, int64_t chunks, int64_t patches, float cells, float* out) {
  const int64_t j = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, b = blockIdx.y;
  if (j >= patches) return;
  float sum = 0.f;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += partial[(b * chunks + chunk) * patches + j];
  out[b * patches + j] = sum / cells;
}

int64_t row_chunks(const AttentionStatsMapParams& p) { return ceil_div(p.tokens - p.first, kRows); }

}  // namespace

size_t workspace_bytes(const AttentionStatsParams& p) {
  if (p.batch == 0) return 0;
  if (!p.first && !p.patches) return key_stats_workspace(p);
  Pieces pieces(nullptr);
  p.probs ? take_probability_workspace(p, pieces) : take_logits_workspace(p, pieces);
  return p.first ? pieces.used() : max(pieces.used(), key_stats_workspace(p));
}

cudaError_t launch_attention_stats(const AttentionStatsParams& p, void* workspace, cudaStream_t stream) {
  if (p.batch == 0) return cudaSuccess;
  if (!p.first) {
    FICOCO_TRY(launch_key_stats(p, workspace, stream));
    if (!p.patches) return cudaSuccess;
  }
  Pieces pieces(workspace);
  if (p.probs) return launch_probability_stats(p, nullptr, nullptr, pieces, nullptr, stream);
  return launch_logits_stats(p, nullptr, nullptr, pieces, stream);
}

size_t workspace_bytes(const AttentionStatsMapParams& p) {
  Pieces pieces(nullptr);
  if (p.patches && p.column) pieces.take<float>(p.batch, row_chunks(p), p.tokens - p.first);
  return pieces.used();
}

cudaError_t launch_attention_stats(const AttentionStatsMapParams& p, void* workspace, cudaStream_t stream) {
  if (p.batch == 0) return cudaSuccess;
  const int64_t patches = p.tokens - p.first;
  return with_type(p.attn.dtype, [&](auto type) {
    using T = decltype(type);
    const View<T> attn = view<T>(p.attn);
    row_kernel<T><<<dim3(ceil_div(p.tokens, kWarps), p.batch), kThreads, 0, stream>>>(p, attn);
    FICOCO_TRY(launched());
    if (!p.patches || !p.column) return cudaSuccess;
    float* partial = static_cast<float*>(workspace);
    const int64_t columns = ceil_div(patches, kThreads), chunks = row_chunks(p);
    column_kernel<T><<<dim3(columns, chunks, p.batch), kThreads, 0, stream>>>(p, attn, partial);
    FICOCO_TRY(launched());
    const float cells = static_cast<float>(p.attn.heads) * static_cast<float>(patches);
    add_kernel<<<dim3(columns, p.batch), kThreads, 0, stream>>>(partial, chunks, patches, cells, p.patch_attention);
    return launched();
  });
}

}  // namespace ficoco
