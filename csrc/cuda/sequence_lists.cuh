// Lists of a decoder's sequence that kernels on lists of tokens read: the visual tokens, then the text after them.
#pragma once
#include "cuda/utils.cuh"

namespace ficoco {

// What is written for each image, and from what. Without `others` nothing is.
struct SequenceLists {
  const int64_t* visual;  // (B, n)
  const bool* real;       // (B, N), or nullptr
  int64_t count, visual_count, after;
  bool last;  // the list is the last real token alone, with weight 1
  bool visual_mean, text_mean;
  int64_t* others;     // (B, n + after), or (B, 1)
  float* weights;      // (B, 2, n + after): of the visual tokens, of the text; or (B, 1, 1)
  uint32_t* counters;  // (B, counter_count), set to 0 for later kernels
  int64_t counter_count;
};

// Whether the t-th of the last `after` columns is text: real, and after the visual tokens.
__device__ __forceinline__ bool is_text(const bool* real, int64_t last_visual, int64_t column) {
  return column > last_visual && (!real || real[column]);
}

// How many of an image's last `after` columns are text. All threads of the block call it; `shared` holds 32 numbers.
__device__ __forceinline__ int count_text(const bool* real, int64_t last_visual, int64_t count, int64_t after,
                                          int* shared) {
  if (!real) return static_cast<int>(min(after, count - 1 - last_visual));
  int mine = 0;
  for (int64_t column = count - after + threadIdx.x; column < count; column += blockDim.x) {
    mine += is_text(real, last_visual, column);
  }
  return block_sum(mine, shared);
}

// One block writes the lists of image b.
__device__ __forceinline__ void write_lists(const SequenceLists& s, int64_t b) {
  __shared__ int shared[kWarp];
  const bool* real = s.real ? s.real + b * s.count : nullptr;
  for (int64_t i = threadIdx.x; i < s.counter_count; i += blockDim.x) s.counters[b * s.counter_count + i] = 0;
  if (s.last) {
    int last = 0;
    for (int64_t column = threadIdx.x; column < s.count; column += blockDim.x) {
      if (!real || real[column]) last = static_cast<int>(column);
    }
    last = __reduce_max_sync(kAllLanes, last);
    if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = last;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int w = 1; w < static_cast<int>(blockDim.x) / kWarp; ++w) last = max(last, shared[w]);
    s.others[b] = last;
    s.weights[b] = 1.f;
    return;
  }
  const int64_t n = s.visual_count, all = n + s.after;
  const int64_t *visual = s.visual + b * n, last_visual = visual[n - 1];
  const int text = count_text(real, last_visual, s.count, s.after, shared);
  const float of_visual = s.visual_mean ? 1.f / static_cast<float>(n) : 1.f;
  const float of_text = s.text_mean ? 1.f / static_cast<float>(max(text, 1)) : 1.f;
  for (int64_t i = threadIdx.x; i < all; i += blockDim.x) {
    const int64_t column = i < n ? visual[i] : s.count - all + i;
    assert(column >= 0 && column < s.count && "ficoco::reduce_sequence: a visual token is not in the sequence");
    const bool chosen = is_text(real, last_visual, column);
    s.others[b * all + i] = i < n || chosen ? column : last_visual;  // padding may be NaN, which no weight hides
    s.weights[2 * b * all + i] = i < n ? of_visual : 0.f;
    s.weights[(2 * b + 1) * all + i] = i >= n && chosen ? of_text : 0.f;
  }
}

}  // namespace ficoco
