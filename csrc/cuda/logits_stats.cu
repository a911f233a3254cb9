// Class attention and patch attention from logits, in two reads and without an N x N map: the mean over heads of inner
// products is one inner product over all heads, and the mean over a row is the inner product with the mean key.
//
//   row:    read k once (sum of keys, inner products with the class query), then q once (inner products with the sum)
//   column: read q once (sum of queries), then k once (inner products with the class query and with the sum)
//
// stats_pass.cuh is one such read. The last block to finish the second read of some tokens adds up their partial inner
// products. If the image is to be filtered, the last block of the image adds up all of them and filters.
//
// 4 B H N d FLOPs, q and k read once: bound by memory. Shared memory 8.4 KB.
#include "cuda/filter.cuh"
#include "cuda/logits_stats.cuh"
#include "cuda/stats_pass.cuh"

namespace ficoco {
namespace {

struct Tail {
  uint32_t* counters;  // (B, pass_counters) blocks that are done; nullptr: no tail
  const float *class_dots, *mean_dots;
  int64_t class_slices, mean_slices, patches;
  float class_factor, mean_factor;
  float *class_attention, *patch_attention;
  FilterParams filter;  // batch 0: do not filter
};

constexpr int kTailItems = kFusedPatches / kPassThreads;

// The statistics of patches [begin, end) of an image, of which there are at most kItems a thread.
template <int kItems>
__device__ __forceinline__ void finish(const Tail& tail, int64_t b, int begin, int end, float (&patch)[kItems],
                                       float (&cls)[kItems]) {
  const int64_t patches = tail.patches;
  if (tail.class_dots) {
    const float* dots = tail.class_dots + b * tail.class_slices * patches;
    add_slices(dots, tail.class_slices, patches, begin, end, tail.class_factor, cls);
  }
  if (tail.mean_dots) {
    const float* dots = tail.mean_dots + b * tail.mean_slices * patches;
    add_slices(dots, tail.mean_slices, patches, begin, end, tail.mean_factor, patch);
  }
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const int i = begin + threadIdx.x + k * kPassThreads;
    if (tail.class_dots && i < end) tail.class_attention[b * patches + i] = cls[k];
    if (tail.mean_dots && i < end) tail.patch_attention[b * patches + i] = patch[k];
  }
}

template <bool kSum, bool kVector>
constexpr int kPassBlocks = kSum && kVector ? 4 : 3;  // as many as the registers allow

template <class T, bool kVector, bool kSum, bool kClass, bool kMean>
__global__ void __launch_bounds__(kPassThreads, kPassBlocks<kSum, kVector>)
    pass_kernel(PassParams p, View<T> rows, View<T> query, Tail tail) {
  stats_pass<T, kVector, kSum, kClass, kMean>(p, rows, query);
  if constexpr (!kSum) {  // the sums are for a later pass
    if (!tail.counters) return;
    __shared__ FilterShared shared;
    extern __shared__ Cell cells[];
    const int64_t b = blockIdx.z;
    uint32_t* counters = tail.counters + b * pass_counters(p.tokens);
    if (tail.filter.batch) {
      if (!last_block(counters, gridDim.x * gridDim.y)) return;
      float patch[kTailItems] = {}, cls[kTailItems] = {};
      finish(tail, b, 0, static_cast<int>(tail.patches), patch, cls);
      filter_block<kTailItems>(tail.filter, b, patch, cls, cells, shared);
    } else if (last_block(counters + blockIdx.x, gridDim.y)) {  // of these tokens
      float patch[1] = {}, cls[1] = {};
      const int begin = static_cast<int>(blockIdx.x) * p.block_tokens, first = static_cast<int>(p.first);
      finish(tail, b, max(begin - first, 0), min(begin + p.block_tokens, static_cast<int>(p.tokens)) - first, patch,
             cls);
    }
  }
}

template <bool kSum, bool kClass, bool kMean>
cudaError_t launch_pass(PassParams pass, const Rows& rows, const Rows& query, int64_t batch, const Tail& tail,
                        cudaStream_t stream) {
  const PassShape shape = pass_shape(rows, pass.tokens, pass.width);
  pass.packs_per_head = shape.packs_per_head;
  pass.packs = shape.packs;
  const bool few = !kSum && shape.chunks * shape.slices * batch <= kFewPasses;
  pass.block_tokens = few ? kFewTokens : kPassTokens;
  const dim3 grid(ceil_div(pass.tokens, pass.block_tokens), shape.slices, batch);
  const size_t cells = tail.filter.batch ? filter_cells(tail.filter) * sizeof(Cell) : 0;
  return with_type(rows.dtype, vectorised(rows, pass.width) && vectorised(query, pass.width),
                   [&](auto type, auto vector) {
                     using T = decltype(type);
                     pass_kernel<T, decltype(vector)::value, kSum, kClass, kMean>
                         <<<grid, kPassThreads, cells, stream>>>(pass, view<T>(rows), view<T>(query), tail);
                     return launched();
                   });
}

struct Workspace {
  float *sums, *class_dots, *mean_dots;
  uint32_t* counters;
};

const Rows& first_rows(const AttentionStatsParams& p) { return p.column ? p.query : p.key; }
const Rows& second_rows(const AttentionStatsParams& p) { return p.column ? p.key : p.query; }

Workspace take(const AttentionStatsParams& p, Pieces& pieces) {
  const PassShape key = pass_shape(p.key, p.tokens, p.width), query = pass_shape(p.query, p.tokens, p.width);
  const int64_t patches = p.tokens - p.first, heads = first_rows(p).heads;
  Workspace w{};
  if (p.patches) w.sums = pieces.take<float>(p.batch, key.chunks, heads, p.width);
  if (p.first) w.class_dots = pieces.take<float>(p.batch, key.slices, patches);
  if (p.patches) w.mean_dots = pieces.take<float>(p.batch, (p.column ? key : query).slices, patches);
  w.counters = pieces.take<uint32_t>(p.batch, pass_counters(p.tokens));
  return w;
}

}  // namespace

bool can_filter_in_tail(const FilterParams& p) {
  return p.patches <= kFusedPatches && filter_cells(p) <= kFusedPatches;
}

void take_logits_workspace(const AttentionStatsParams& p, Pieces& pieces) { take(p, pieces); }

cudaError_t launch_logits_stats(const AttentionStatsParams& p, const FilterParams* filter, uint32_t* counters,
                                Pieces& pieces, cudaStream_t stream) {
  const Workspace w = take(p, pieces);
  const PassShape key = pass_shape(p.key, p.tokens, p.width);
  const int64_t patches = p.tokens - p.first;
  const float factor = p.scale / static_cast<float>(p.query.heads);
  Tail tail{};
  tail.counters = w.counters;
  tail.class_dots = w.class_dots;
  tail.class_slices = key.slices;
  tail.mean_dots = w.mean_dots;
  tail.mean_slices = pass_shape(second_rows(p), p.tokens, p.width).slices;
  tail.patches = patches;
  tail.class_factor = factor;
  tail.mean_factor = factor / static_cast<float>(patches);
  tail.class_attention = p.class_attention;
  tail.patch_attention = p.patch_attention;
  if (filter) tail.filter = *filter;
  PassParams pass{};
  pass.tokens = p.tokens;
  pass.width = p.width;
  pass.first = p.first;
  if (!p.patches) {
    if (counters) FICOCO_TRY(set_to_zero(counters, p.batch * sizeof(uint32_t), stream));
    FICOCO_TRY(set_to_zero(w.counters, p.batch * pass_counters(p.tokens) * sizeof(uint32_t), stream));
    pass.class_dots = w.class_dots;
    return launch_pass<false, true, false>(pass, p.key, p.query, p.batch, tail, stream);
  }
  PassParams sum = pass;
  sum.sums = w.sums;
  sum.counters = w.counters;
  sum.later_counters = counters;
  pass.mean = {w.sums, key.chunks, first_rows(p).heads};
  pass.mean_dots = w.mean_dots;
  const Tail none{};
  if (p.column) {
    FICOCO_TRY((launch_pass<true, false, false>(sum, p.query, p.query, p.batch, none, stream)));
    if (!p.first) return launch_pass<false, false, true>(pass, p.key, p.query, p.batch, tail, stream);
    pass.class_dots = w.class_dots;
    return launch_pass<false, true, true>(pass, p.key, p.query, p.batch, tail, stream);
  }
  sum.class_dots = w.class_dots;
  if (p.first) {
    FICOCO_TRY((launch_pass<true, true, false>(sum, p.key, p.query, p.batch, none, stream)));
  } else {
    FICOCO_TRY((launch_pass<true, false, false>(sum, p.key, p.query, p.batch, none, stream)));
  }
  return launch_pass<false, false, true>(pass, p.query, p.query, p.batch, tail, stream);
}

}  // namespace ficoco
