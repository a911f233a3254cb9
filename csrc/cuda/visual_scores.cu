// Which visual tokens leave a decoder's sequence, and where everything then is.
//
// By logits the mean over heads and tokens of inner products is one inner product with a sum of keys. The first kernel
// adds up the keys of the visual tokens and those of the text, 128 a block. In the second a block has 128 visual tokens
// (32 where there are few blocks) and 32 packs of 16 bytes of their queries; the last block of an image adds up the
// partial inner products, filters, and writes where what stays will be. It can do so for up to 4096 visual tokens; more
// of them, and scores that others made (probabilities), take a kernel with a block an image.
//
// 4 B n H d + B (n + R) Hk d FLOPs for n visual tokens and R of text: their keys and queries are read once, bound by
// memory; each block of the second kernel adds up the sums of all chunks again. No exponentials. The choice reads 8 n
// bytes for each of its parts and writes 8 (N + 2 n): bound by latency. Shared memory: 9 KB (sums), 4 KB (choice), and
// 8 bytes a window of a local penalty.
#include "cuda/visual_scores.cuh"

#include "images.h"

namespace ficoco {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kChunk = 128;    // rows that a block adds up, or queries of one block
constexpr int kFewChunk = 32;  // queries of one block of a small grid
constexpr int64_t kFew = 128;  // blocks that make a small grid
constexpr int kBatch = 4;      // reads of a lane in flight at once
constexpr int kChooser = 512;  // threads of a block that only chooses

struct Packs {
  int per_head, all;
  int64_t slices;
};
Packs packs_of(const Rows& rows, int64_t width) {
  const int64_t per_head = ceil_div(width, 16 / size_of(rows.dtype));
  return {static_cast<int>(per_head), static_cast<int>(per_head * rows.heads),
          max(ceil_div(per_head * rows.heads, kWarp), int64_t{1})};
}

struct KeySums {
  float* partial;  // (B, chunks, Hk d): sums over visual tokens, then over text
  int visual_chunks, chunks;
};
KeySums sums_of(const ReduceSequenceParams& p, float* partial) {
  const int visual = static_cast<int>(ceil_div(p.visual_count, kChunk));
  return {partial, visual, visual + static_cast<int>(ceil_div(p.after, kChunk))};
}

__device__ __forceinline__ int column_of(const ReduceSequenceParams& p, int64_t b, int64_t i) {
  const int64_t column = p.visual[b * p.visual_count + i];
  assert(column >= 0 && column < p.count && "ficoco::reduce_sequence: a visual token is not in the sequence");
  return static_cast<int>(column);
}

template <class T, bool kVector>
__global__ void __launch_bounds__(kThreads, 2)
    key_sums_kernel(const __grid_constant__ ReduceSequenceParams p, View<T> key, KeySums out, Packs packs,
                    uint32_t* counters, int64_t counter_count) {
  __shared__ float warp_sums[kWarps][kWarp * kPer<T> + 1];
  __shared__ int columns[kChunk];  // -1: no row
  const int64_t b = blockIdx.z;
  const int chunk = static_cast<int>(blockIdx.x), warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (chunk == 0 && blockIdx.y == 0) {
    for (int64_t i = threadIdx.x; i < counter_count; i += kThreads) counters[b * counter_count + i] = 0;
  }
  if (threadIdx.x < kChunk) {
    const bool of_text = chunk >= out.visual_chunks;
    const int64_t i = static_cast<int64_t>(of_text ? chunk - out.visual_chunks : chunk) * kChunk + threadIdx.x;
    int column = -1;
    if (of_text && i < p.after) {
      const int64_t at = p.count - p.after + i;
      const bool* real = p.real ? p.real + b * p.count : nullptr;
      if (is_text(real, column_of(p, b, p.visual_count - 1), at)) column = static_cast<int>(at);
    } else if (!of_text && i < p.visual_count) {
      column = column_of(p, b, i);
    }
    columns[threadIdx.x] = column;
  }
  __syncthreads();
  const int pack = static_cast<int>(blockIdx.y) * kWarp + lane;
  const bool mine = pack < packs.all;
  const int h = mine ? pack / packs.per_head : 0, c = mine ? pack % packs.per_head * kPer<T> : 0;
  const T* rows = key.row(b, h, 0) + c;
  float sums[kPer<T>] = {};
  for (int r0 = warp; r0 < kChunk; r0 += kBatch * kWarps) {
    Pack<T> x[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int column = columns[r0 + i * kWarps];
      x[i] = {};
      if (mine && column >= 0) x[i] = load_pack<T, kVector>(rows + column * key.stride_n, p.width - c);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
#pragma unroll
      for (int e = 0; e < kPer<T>; ++e) sums[e] += to_float(x[i].x[e]);
    }
  }
#pragma unroll
  for (int e = 0; e < kPer<T>; ++e) warp_sums[warp][lane * kPer<T> + e] = sums[e];
  __syncthreads();
  const int width = static_cast<int>(p.width);
  float* to = out.partial + (b * out.chunks + chunk) * key.heads * p.width;
  for (int i = threadIdx.x; i < kWarp * kPer<T>; i += kThreads) {
    const int of = static_cast<int>(blockIdx.y) * kWarp + i / kPer<T>;
    if (of >= packs.all) continue;
    const int channel = of % packs.per_head * kPer<T> + i % kPer<T>;
    if (channel >= width) continue;
    float total = 0.f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += warp_sums[w][i];
    to[of / packs.per_head * width + channel] = total;
  }
}

// What a choice of visual tokens is in the sequence. Thread t has visual tokens t, t + blockDim.x, ...
template <int kItems>
__device__ __forceinline__ void write_choice(const ReduceSequenceParams& p, int64_t b, uint32_t chosen,
                                             const SelectShared& select, const VisualChoice& out, int text) {
  const int n = static_cast<int>(p.visual_count), r = static_cast<int>(p.r), count = static_cast<int>(p.count);
  int64_t *sources = p.sources + b * p.r, *kept = p.kept + b * (p.count - p.r);
  int64_t* left_visual = p.left_visual + b * (n - r);
#pragma unroll 1
  for (int k = 0; k < kItems; ++k) {
    const int i = threadIdx.x + k * blockDim.x, before = rank_of(chosen, k, select);
    if (i >= n) continue;
    const int column = column_of(p, b, i), leaves = static_cast<int>(chosen >> k & 1u);
    const int next = i + 1 < n ? column_of(p, b, i + 1) : column + 1;
    assert(next > column && column >= i && "ficoco::reduce_sequence: visual tokens do not ascend");
    if (leaves) {
      sources[before] = column;
    } else {
      if (out.candidates) out.candidates[b * (n - r) + i - before] = column;
      left_visual[i - before] = column - before;
      kept[column - before] = column;
    }
    for (int between = column + 1; between < next; ++between) kept[between - before - leaves] = between;
  }
  const int first = column_of(p, b, 0), last = column_of(p, b, n - 1);
  for (int column = threadIdx.x; column < first; column += blockDim.x) kept[column] = column;
  for (int column = last + 1 + threadIdx.x; column < count; column += blockDim.x) kept[column - r] = column;
  if (!out.candidates) return;
  const bool* real = p.real ? p.real + b * p.count : nullptr;
  const float share = p.indirect_mean ? 1.f / static_cast<float>(max(text, 1)) : 1.f;
  for (int t = threadIdx.x; t < static_cast<int>(p.after); t += blockDim.x) {
    const int column = count - static_cast<int>(p.after) + t;
    const bool chosen = is_text(real, last, column);
    out.text[b * p.after + t] = chosen ? column : last;  // padding may be NaN, which no weight hides
    out.text_share[b * p.after + t] = chosen ? share : 0.f;
  }
}

// The sum of visual token i over the parts of a set.
__device__ __forceinline__ float add_parts(const VisualScores& scores, const float* data, int i) {
  float sum = 0.f;
#pragma unroll 8
  for (int part = 0; part < scores.parts; ++part) sum += data[part * scores.part_step + i];
  return sum;
}

// Adds up this thread's scores, chooses by them, and writes the choice. One block an image.
template <int kItems>
__device__ __forceinline__ void choose_visual(const ReduceSequenceParams& p, const FilterParams& filter,
                                              const VisualScores& scores, const VisualChoice& choice, int64_t b,
                                              Cell* cells, FilterShared& shared, int* counts) {
  const int n = static_cast<int>(p.visual_count);
  const bool* real = p.real ? p.real + b * p.count : nullptr;
  const int text = count_text(real, column_of(p, b, n - 1), p.count, p.after, counts);
  const float of_visual = scores.shares && p.visual_mean ? 1.f / static_cast<float>(n) : 1.f;
  const float of_text = scores.shares && p.text_mean ? 1.f / static_cast<float>(max(text, 1)) : 1.f;
  const float beta = scores.sets == 2 ? p.beta : 0.f;
  const float of_among = scores.factor * of_visual, of_with_text = scores.factor * of_text;
  const float* data = scores.data + b * scores.image_step;
  // Redundancy as filter_block has it, which gets it as its first term. Each thread reads back what it wrote: two terms
  // of each of its tokens would cost registers.
  float* stored = p.redundancy + b * p.visual_count;
#pragma unroll 1
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    const float among = scores.sets == 2 ? of_among * add_parts(scores, data, i) : 0.f;
    float with_text = of_with_text * add_parts(scores, data + (scores.sets - 1) * scores.set_step, i);
    if (scores.sets == 2 && text == 0) with_text = -among;  // the first term alone
    float sum = 0.f;
    if (beta != 0.f) sum += beta * among;
    if (beta != 1.f) sum += (beta - 1.f) * with_text;
    stored[i] = sum;
  }
  float redundancy[kItems];
  load_scores(stored, 1.f, n, redundancy);
  const float none[kItems] = {};
  const uint32_t chosen = choose_block(filter, b, redundancy, none, cells, shared);
  write_choice<kItems>(p, b, chosen, shared.select, choice, text);
}

// kItems 0: without a tail.
template <class T, bool kVector, int kItems>
__global__ void __launch_bounds__(kThreads, 2)
    visual_dots_kernel(const __grid_constant__ ReduceSequenceParams p, View<T> query, int key_heads, KeySums sums,
                       Packs packs, int block_tokens, float* dots, const __grid_constant__ FilterParams filter,
                       const __grid_constant__ VisualScores scores, const __grid_constant__ VisualChoice choice,
                       uint32_t* counters, int64_t counter_count) {
  const int64_t b = blockIdx.z, slices = gridDim.y;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, width = static_cast<int>(p.width);
  const int pack = static_cast<int>(blockIdx.y) * kWarp + lane, n = static_cast<int>(p.visual_count);
  const bool mine = pack < packs.all;
  const int h = mine ? pack / packs.per_head : 0, c = mine ? pack % packs.per_head * kPer<T> : 0;
  float with[2][kPer<T>] = {};
  if (mine) {
    const int state = key_heads * width, key_head = h / (query.heads / key_heads);
    const float* from = sums.partial + b * sums.chunks * state + key_head * width + c;
#pragma unroll 4
    for (int chunk = 0; chunk < sums.chunks; ++chunk, from += state) {
      const bool of_text = chunk >= sums.visual_chunks;
#pragma unroll
      for (int e = 0; e < kPer<T>; e += 4) {
        const Pack<float> four = load_pack<float, kVector>(from + e, width - c - e);
#pragma unroll
        for (int f = 0; f < 4; ++f) {
          with[0][e + f] += of_text ? 0.f : four.x[f];
          with[1][e + f] += of_text ? four.x[f] : 0.f;
        }
      }
    }
  }
  const T* rows = query.row(b, h, 0) + c;
  const int begin = static_cast<int>(blockIdx.x) * block_tokens, end = min(begin + block_tokens, n);
  for (int i0 = begin + warp; i0 < end; i0 += kBatch * kWarps) {
    // All columns first, with one assert: an assert for each would make the loads wait for one another.
    int column[kBatch];
    bool right = true;
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int64_t at = p.visual[b * p.visual_count + min(i0 + j * kWarps, end - 1)];
      right = right && at >= 0 && at < p.count;
      column[j] = static_cast<int>(at);
    }
    assert(right && "ficoco::reduce_sequence: visual columns out of range");
    Pack<T> x[kBatch];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      x[j] = {};
      if (mine && i0 + j * kWarps < end) x[j] = load_pack<T, kVector>(rows + column[j] * query.stride_n, width - c);
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      float dot[2] = {};
#pragma unroll
      for (int e = 0; e < kPer<T>; ++e) {
        const float value = to_float(x[j].x[e]);
        dot[0] = fmaf(value, with[0][e], dot[0]);
        dot[1] = fmaf(value, with[1][e], dot[1]);
      }
      dot[0] = warp_sum(dot[0]);
      dot[1] = warp_sum(dot[1]);
      const int i = i0 + j * kWarps;
      if (lane != 0 || i >= end) continue;
      float* to = dots + (b * slices + blockIdx.y) * 2 * n + i;
      to[0] = dot[0];
      to[n] = dot[1];
    }
  }
  if constexpr (kItems > 0) {
    __shared__ FilterShared shared;
    __shared__ int counts[kWarp];
    extern __shared__ Cell cells[];
    if (!last_block(counters + b * counter_count, gridDim.x * gridDim.y)) return;
    choose_visual<kItems>(p, filter, scores, choice, b, cells, shared, counts);
  }
}

template <int kItems>
__global__ void __launch_bounds__(kChooser, 1)
    choose_visual_kernel(const __grid_constant__ ReduceSequenceParams p, const __grid_constant__ FilterParams filter,
                         const __grid_constant__ VisualScores scores, const __grid_constant__ VisualChoice choice,
                         Cell* cells) {
  __shared__ FilterShared shared;
  __shared__ int counts[kWarp];
  extern __shared__ Cell shared_cells[];
  const int64_t b = blockIdx.x;
  choose_visual<kItems>(p, filter, scores, choice, b, cells ? cells + b * filter_cells(filter) : shared_cells, shared,
                        counts);
}

// With the redundancy as its first term, and no other.
FilterParams filter_params(const ReduceSequenceParams& p) {
  FilterParams filter = filter_of(p, nullptr, nullptr, nullptr, nullptr);
  filter.lam = 1.f;
  return filter;
}

template <int kItems>
cudaError_t launch_dots(const ReduceSequenceParams& p, const VisualWork& w, const KeySums& sums,
                        const VisualScores& scores, const VisualChoice& choice, uint32_t* counters,
                        int64_t counter_count, cudaStream_t stream) {
  const Packs packs = packs_of(p.query, p.width);
  const FilterParams filter = filter_params(p);
  const bool few = ceil_div(p.visual_count, kChunk) * packs.slices * p.batch <= kFew;
  const int tokens = few ? kFewChunk : kChunk;
  const dim3 grid(ceil_div(p.visual_count, tokens), packs.slices, p.batch);
  const size_t shared = kItems ? filter_cells(filter) * sizeof(Cell) : 0;
  return with_type(p.query.dtype, vectorised(p.query, p.width), [&](auto type, auto vector) {
    using T = decltype(type);
    visual_dots_kernel<T, decltype(vector)::value, kItems>
        <<<grid, kThreads, shared, stream>>>(p, view<T>(p.query), static_cast<int>(p.key.heads), sums, packs, tokens,
                                             w.dots, filter, scores, choice, counters, counter_count);
    return launched();
  });
}

}  // namespace

bool can_choose_visual_in_tail(const ReduceSequenceParams& p) {
  return p.visual_count <= kTailVisual && filter_cells(filter_params(p)) <= kTailCells;
}

VisualWork take_visual_work(const ReduceSequenceParams& p, Pieces& pieces) {
  VisualWork w{};
  if (p.ranking == Ranking::kLogits) {
    w.partial = pieces.take<float>(p.batch, sums_of(p, nullptr).chunks, p.key.heads, p.width);
    w.dots = pieces.take<float>(p.batch, packs_of(p.query, p.width).slices, 2, p.visual_count);
  }
  const int64_t cells = filter_cells(filter_params(p));
  if (cells > kTailCells) w.cells = pieces.take<Cell>(p.batch, cells);
  return w;
}

cudaError_t launch_visual_logits(const ReduceSequenceParams& p, const VisualWork& w, const VisualChoice& choice,
                                 uint32_t* counters, int64_t counter_count, cudaStream_t stream) {
  const KeySums sums = sums_of(p, w.partial);
  const Packs packs = packs_of(p.key, p.width);
  FICOCO_TRY(with_type(p.key.dtype, vectorised(p.key, p.width), [&](auto type, auto vector) {
    using T = decltype(type);
    const dim3 grid(sums.chunks, packs.slices, p.batch);
    key_sums_kernel<T, decltype(vector)::value>
        <<<grid, kThreads, 0, stream>>>(p, view<T>(p.key), sums, packs, counters, counter_count);
    return launched();
  }));
  const int slices = static_cast<int>(packs_of(p.query, p.width).slices);
  const int64_t n = p.visual_count;
  const VisualScores scores{w.dots, slices, 2 * slices * n, 2 * n, n, 2, p.scale / static_cast<float>(p.query.heads),
                            true};
  if (can_choose_visual_in_tail(p)) {
    return n <= 4 * kThreads ? launch_dots<4>(p, w, sums, scores, choice, counters, counter_count, stream)
                             : launch_dots<16>(p, w, sums, scores, choice, counters, counter_count, stream);
  }
  FICOCO_TRY(launch_dots<0>(p, w, sums, scores, choice, counters, counter_count, stream));
  return launch_visual_choice(p, w, scores, choice, stream);
}

cudaError_t launch_visual_choice(const ReduceSequenceParams& p, const VisualWork& w, const VisualScores& scores,
                                 const VisualChoice& choice, cudaStream_t stream) {
  static_assert(kMaxPatches <= 32 * kChooser);
  if (p.visual_count > kMaxPatches) return cudaErrorInvalidValue;
  const FilterParams filter = filter_params(p);
  const size_t shared = w.cells ? 0 : filter_cells(filter) * sizeof(Cell);
  const auto go = [&](auto kernel) {
    kernel<<<static_cast<unsigned>(p.batch), kChooser, shared, stream>>>(p, filter, scores, choice, w.cells);
    return launched();
  };
  return p.visual_count <= 8 * kChooser ? go(choose_visual_kernel<8>) : go(choose_visual_kernel<32>);
}

}  // namespace ficoco
