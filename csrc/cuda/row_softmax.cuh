// Maximum and inverse sum of the softmax of chosen query rows, one pass over the keys, no N x N map.
#pragma once
#include "cuda/ptx.cuh"
#include "cuda/sequence_lists.cuh"
#include "cuda/utils.cuh"

namespace ficoco {

// The statistics from which a row's softmax is recomputed: p_j = exp2(s_j * scale * log2(e) - top) * inverse, s
// unscaled.
struct RowSoftmax {
  float* top;        // (B, H, R) the largest s * scale * log2(e)
  float* inverse;    // (B, H, R)
  float* patch_sum;  // (B, H, R) sum of p over the patches, or nullptr
  float* products;   // (B, H, N) the unscaled s of row 0, or nullptr: another order of sums would round differently
  float* parts;      // scratch, where a row's keys are shared among blocks, or nullptr
  bool of_all;       // row i is that of token i: a list of tokens looks its statistics up there

  // The statistics of the i-th of `count` rows of head `head` (image times heads and head), which is that of `token`.
  __device__ __forceinline__ int64_t at(int64_t head, int64_t count, int64_t keys, int64_t i, int64_t token) const {
    return of_all ? head * keys + token : head * count + i;
  }
};

struct RowSoftmaxParams {
  Rows query, key;
  const int64_t* rows;                  // (B, R) tokens whose queries are the rows, or nullptr for 0..R-1
  int64_t batch, tokens, width, count;  // count = R
  int64_t first;
  float scale;
  RowSoftmax out;
  int64_t offset = 0;              // the first query is that of token `offset`
  bool causal = false;             // a query attends to no later token
  const bool* key_mask = nullptr;  // (B, N) false: no query attends to it
};

// Room for the statistics of `count` rows of every head over `keys` keys.
RowSoftmax take_row_softmax(Pieces& pieces, int64_t batch, int64_t heads, int64_t count, int64_t keys);

// Whether the query of `token` attends to key j of image b.
__device__ __forceinline__ bool attends(bool causal, const bool* key_mask, int64_t keys, int64_t b, int64_t token,
                                        int64_t j) {
  return (!causal || j <= token) && (!key_mask || key_mask[b * keys + j]);
}

constexpr float kLog2e = 1.4426950408889634f;

// exp(scale * s) / 2^top with `scale_log2` = scale * log2(e). The rounding of `top` cancels, as the sum of the terms
// has it too.
__device__ __forceinline__ float softmax_term(float s, float top, float scale_log2) {
  return exp2_fast(fmaf(s, scale_log2, -top));
}

// The statistics of all tokens' queries, (B, H, N), if they are known; else nullptr.
struct KnownSoftmax {
  const float *top = nullptr, *inverse = nullptr;
};

// One kernel, and a second one if a row's keys are shared among blocks or if there are lists to write.
cudaError_t launch_row_softmax(const RowSoftmaxParams& p, cudaStream_t stream, const SequenceLists& lists = {});

}  // namespace ficoco
