// Launches blocks of A, the mean over heads of the attention of some tokens to others.
#pragma once
#include "cuda/row_softmax.cuh"
#include "cuda/utils.cuh"

namespace ficoco {

struct List {
  const int64_t* tokens = nullptr;  // (B, count)
  int64_t count = 0;
};

// Columns of a block, and where their entries go.
struct BlockColumns {
  List list;
  const float *row_weight = nullptr, *column_weight = nullptr;  // (B, rows), (B, columns), or nullptr for 1
  float* out = nullptr;
  int64_t image_step = 0, row_step = 0, column_step = 1;  // between entries of `out`
};

constexpr int kBlocks = 2, kColumnLists = 2;

// The attention of `rows` to the tokens of both lists of columns, either of which may be empty.
struct TokenBlock {
  List rows;
  RowSoftmax softmax;  // of the rows, for probabilities
  BlockColumns columns[kColumnLists];
  int tiles = 0, tile_columns = 0;  // of an image, set by the launcher: all tiles, and those in a row
};

struct BlockParams {
  TokenBlock blocks[kBlocks];
  Rows query, key;  // as of CorrelateTokensParams
  int64_t batch, keys, offset, width;
  float scale;
  bool probs, causal;
  const bool* key_mask;
};

// All blocks in one grid.
cudaError_t launch_token_blocks(BlockParams p, cudaStream_t stream);

}  // namespace ficoco
