// Plain data that an operator hands to its kernels: no torch header, no CUDA header.
//
// Shapes: B batch, H heads, Hk key heads, N tokens in, P = N - first patches, M = N - r tokens out, r sources,
// k targets per source, C channels, d head width. `first` is 1 with a class token (token 0), else 0.
// Strides are in elements; the innermost dimension is contiguous everywhere. Accumulation is fp32.
#pragma once
#include <cstdint>

namespace ficoco {

enum class Dtype { kFloat, kHalf, kBFloat16 };
enum class Alpha { kSoftmax, kRatio, kAverage };
enum class Correlation { kLogits, kProbs, kKey, kMap };
enum class Ranking { kLogits, kProbs, kLast };
enum class Objective { kMaxMin, kCoverage, kLogDet, kMmr };

// Of greedy_select and bipartite_thin. A cosine above it is 1, with oneself or with another token: rounding would
// decide between equal tokens.
constexpr float kAlike = 0.99999f;
// Of greedy_select by log-det: the least factor of the determinant that is divided by, and the share of the first one
// below which the rest adds nothing.
constexpr float kSmallestFactor = 1e-10f, kExhausted = 1e-6f;

// Cells of a grid of patches: CUDA kernels give the index of a cell 32 bits.
constexpr int64_t kMaxCells = INT32_MAX;
// Tokens of a sequence.
constexpr int64_t kMaxSequence = INT32_MAX;

inline int64_t size_of(Dtype dtype) { return dtype == Dtype::kFloat ? 4 : 2; }

// A read-only (B, H, N, X) tensor, or (B, N, X) with heads = 1.
struct Rows {
  const void* data = nullptr;
  Dtype dtype = Dtype::kFloat;
  int64_t heads = 1;
  int64_t stride_b = 0, stride_h = 0, stride_n = 0;
};

struct AttentionStatsParams {
  Rows query, key;  // (B, H, N, d), (B, Hk, N, d)
  int64_t batch, tokens, width;
  int64_t first;
  float scale;
  bool probs, column, patches;
  float* class_attention;  // (B, P)
  float* patch_attention;  // (B, P); left alone unless `patches`
};

struct AttentionStatsMapParams {
  Rows attn;  // (B, H, N, N)
  int64_t batch, tokens;
  int64_t first;
  bool column, patches;
  float* class_attention;  // (B, P)
  float* patch_attention;  // (B, P); left alone unless `patches`
};

struct FilterParams {
  const float* patch_attention;  // (B, P)
  const float* class_attention;  // (B, P)
  const int64_t* ids;            // (B, P) cells on the grid, or nullptr for 0..P-1
  int64_t batch, patches, r;
  int64_t first;
  float lam, penalty;
  bool normalize;
  int64_t window, grid_height, grid_width;
  float* redundancy;  // (B, P)
  int64_t* sources;   // (B, r)
  int64_t* kept;      // (B, M)
};

struct CorrelateParams {
  Correlation by;
  Rows query, key;         // (B, H, N, d), (B, Hk, N, d); kKey reads the key alone
  Rows attn;               // (B, H, N, N), for kMap
  const int64_t* sources;  // (B, r)
  const int64_t* kept;     // (B, M)
  int64_t batch, tokens, width, r, kept_count, k;
  int64_t first;
  float scale;
  Alpha alpha;
  int64_t* targets;  // (B, r, k)
  float* weights;    // (B, r, k)
};

struct TokenAttentionParams {
  Rows query, key;        // (B, H, Tq, d), (B, Hk, T, d): the queries of the last Tq tokens
  const int64_t* tokens;  // (B, N)
  const int64_t* others;  // (B, R)
  const float* weights;   // (B, W, R)
  const bool* key_mask;   // (B, T), or nullptr
  int64_t batch, keys, offset, width, count, other_count, sets;  // T, T - Tq, d, N, R, W
  float scale;
  bool probs, column, causal;
  float* out;  // (B, W, N)
};

struct CorrelateTokensParams {
  Rows query, key;                                                         // as of TokenAttentionParams
  const int64_t* sources;                                                  // (B, r)
  const int64_t* candidates;                                               // (B, m)
  const int64_t* others;                                                   // (B, R)
  const float* others_weight;                                              // (B, R)
  const bool* key_mask;                                                    // (B, T), or nullptr
  int64_t batch, keys, offset, width, r, candidate_count, other_count, k;  // T, T - Tq, d, r, m, R, k
  float scale, gamma;
  Alpha alpha;
  bool probs, column, causal;
  int64_t* targets;  // (B, r, k) indices into candidates
  float* weights;    // (B, r, k)
};

struct ToSequenceParams {
  const int64_t* visual;               // (B, n) positions among `tokens`, ascending
  const int64_t* sources;              // (B, r) indices into visual, as kept
  const int64_t* kept;                 // (B, n - r)
  const int64_t* targets;              // (B, r, k) indices into kept
  int64_t batch, count, r, k, tokens;  // count = n
  int64_t* source_positions;           // (B, r)
  int64_t* kept_positions;             // (B, tokens - r)
  int64_t* target_indices;             // (B, r, k) indices into kept_positions
  int64_t* visual_positions;           // (B, n - r) likewise
};

// Tokens at even indices may leave, those at odd ones receive them; class and distillation token (indices 0 and 1) do
// neither.
struct MatchParams {
  Rows key;  // (B, Hk, N, d)
  int64_t batch, tokens, width, r;
  int64_t first;
  bool distill;
  float* redundancy;  // (B, P)
  int64_t* sources;   // (B, r)
  int64_t* kept;      // (B, M)
  int64_t* targets;   // (B, r)
  float* weights;     // (B, r)
};

// Cosines of the features of tokens with other vectors.
struct CosinesParams {
  Rows features;  // (B, N, D)
  Rows things;    // (B, R, D)
  int64_t batch, tokens, thing_count, width;
  float* cosines;  // (B, N, R)
};

// Tokens that are picked one by one, each for what it adds to those before.
struct GreedySelectParams {
  Rows features;          // (B, N, D)
  const float* saliency;  // (B, N), or nullptr for 1
  const bool* mask;       // (B, N), or nullptr
  int64_t batch, tokens, width, count;
  Objective objective;
  float trade;
  int64_t* order;  // (B, T) in the order of picking
  float* gains;    // (B, T)
};

// Tokens that are picked one by one, each for what it covers that those before do not.
struct GreedyCoverParams {
  Rows cover;        // (B, N, R) of floats: by how much each token covers each thing
  const bool* mask;  // (B, N), or nullptr
  int64_t batch, tokens, things, count;
  int64_t* order;  // (B, T) in the order of picking
  float* gains;    // (B, T)
};

// Lists of tokens that are thinned of those that repeat another one.
struct BipartiteThinParams {
  Rows features;         // (B, N, D)
  const int64_t* order;  // (B, L)
  const bool* mask;      // (B, N), or nullptr
  int64_t batch, tokens, width, length, count, step;
  int64_t* left;  // (B, T), as the last round leaves them
};

// How alike the patches of each window of a grid are.
struct WindowSimilarityParams {
  Rows tokens;                                             // (B, P, C)
  int64_t batch, grid_width, width, window, down, across;  // width = C; down * across windows
  float* similarity;                                       // (B, W)
};

// What visual tokens receive from chosen rows of text.
struct ReceivedFromParams {
  Rows query, key;                                        // as of TokenAttentionParams
  const int64_t* visual;                                  // (B, n)
  const int64_t* text;                                    // (B, R)
  const bool* chosen;                                     // (B, R)
  const bool* key_mask;                                   // (B, T), or nullptr
  int64_t batch, keys, offset, width, count, text_count;  // T, T - Tq, d, n, R
  float scale;
  bool probs, causal;
  float *total, *peak;  // (B, n)
};

// The largest scores of every segment, as many as it may keep.
struct TopOfSegmentsParams {
  const float* scores;      // (B, N)
  const int64_t* segments;  // (B, N), or (N) with segment_stride 0
  int64_t segment_stride;
  const int64_t* counts;                 // (B, G)
  int64_t batch, tokens, groups, total;  // N, G, T
  int64_t* kept;                         // (B, T) ascending
};

struct CompressParams {
  Rows tokens;             // (B, N, C)
  const int64_t* sources;  // (B, r)
  const int64_t* kept;     // (B, M)
  const int64_t* targets;  // (B, r, k)
  const float* weights;    // (B, r, k)
  const float* size;       // (B, N), or nullptr for 1
  int64_t batch, count, channels, r, kept_count, k;
  bool size_weighted;
  void* out;            // (B, M, C), dtype of tokens
  float* out_size;      // (B, M)
  int64_t* source_map;  // (B, N)
};

// What a reducing layer of a language model does with its sequence of N tokens, n of them visual.
struct ReduceSequenceParams {
  Rows tokens;                                                // (B, N, C)
  Rows query, key;                                            // (B, H, N, d), (B, Hk, N, d)
  const int64_t* visual;                                      // (B, n) ascending columns
  const bool* real;                                           // (B, N), or nullptr
  const int64_t* ids;                                         // (B, n) cells on the grid, or nullptr for 0..n-1
  const float* size;                                          // (B, N), or nullptr for 1
  int64_t batch, count, visual_count, channels, width, r, k;  // N, n, C, d
  int64_t after;                                              // the last columns, among which the text is
  float scale;
  Ranking ranking;
  float beta, penalty;
  bool visual_mean, text_mean, indirect_mean;
  int64_t window, grid_height, grid_width;
  bool probs;  // of the correlation
  float gamma;
  Alpha alpha;
  bool size_weighted;
  void* out;             // (B, N - r, C), dtype of tokens
  float* out_size;       // (B, N - r)
  int64_t* source_map;   // (B, N)
  float* redundancy;     // (B, n)
  int64_t* sources;      // (B, r) columns
  int64_t* kept;         // (B, N - r) columns
  int64_t* targets;      // (B, r, k) indices into kept
  float* weights;        // (B, r, k)
  int64_t* left_visual;  // (B, n - r) columns in the shorter sequence
};

}  // namespace ficoco
