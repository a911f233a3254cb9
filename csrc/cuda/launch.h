// The CUDA kernels as the rest of the project sees them: no torch, no kernel code. A launcher enqueues its kernels on
// `stream` and returns the first error; it allocates nothing, waits for nothing and reads no device memory. `workspace`
// is device memory of workspace_bytes(params), 256-byte aligned, contents undefined before and after; null if 0 bytes.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "params.h"

namespace ficoco {

// Filter keeps all scores of an image in the registers of one block.
constexpr int64_t kMaxPatches = 16384;

// Blocks along the second and third side of a grid. Images are along one of them: a launcher takes at most kMaxImages;
// more take several calls. The tests on the host reach the limit with few.
constexpr int64_t kMaxBlocks = 65535;
#ifdef FICOCO_EMULATED
constexpr int64_t kMaxImages = 5;
#else
constexpr int64_t kMaxImages = kMaxBlocks;
#endif
// The sizes that fit into the grids of all kernels: heads, channels of all heads together, tokens.
constexpr int64_t kMaxHeads = kMaxBlocks, kMaxChannels = kMaxBlocks * 128, kMaxTokens = kMaxBlocks * 8;

// Side of a window whose lengths a block of window_similarity holds.
constexpr int64_t kMaxWindow = 32;

// workspace_bytes() of sizes whose product cannot be counted.
constexpr size_t kUncountable = PTRDIFF_MAX;

struct ReduceParams {  // outputs of one stage are inputs of the next: the pointers must agree
  bool map;            // the attention is `map_stats.attn`, else `stats`
  AttentionStatsParams stats;
  AttentionStatsMapParams map_stats;
  FilterParams filter;
  CorrelateParams correlate;
  CompressParams compress;
};

size_t workspace_bytes(const AttentionStatsParams& p);
size_t workspace_bytes(const AttentionStatsMapParams& p);
size_t workspace_bytes(const FilterParams& p);
size_t workspace_bytes(const CorrelateParams& p);
size_t workspace_bytes(const MatchParams& p);
size_t workspace_bytes(const GreedySelectParams& p);
size_t workspace_bytes(const GreedyCoverParams& p);
size_t workspace_bytes(const BipartiteThinParams& p);
size_t workspace_bytes(const ReceivedFromParams& p);
size_t workspace_bytes(const TopOfSegmentsParams& p);
size_t workspace_bytes(const TokenAttentionParams& p);
size_t workspace_bytes(const CorrelateTokensParams& p);
size_t workspace_bytes(const ReduceParams& p);
size_t workspace_bytes(const ReduceSequenceParams& p);
inline size_t workspace_bytes(const CompressParams&) { return 0; }
inline size_t workspace_bytes(const CosinesParams&) { return 0; }
inline size_t workspace_bytes(const WindowSimilarityParams&) { return 0; }
inline size_t workspace_bytes(const ToSequenceParams&) { return 0; }

cudaError_t launch_attention_stats(const AttentionStatsParams& p, void* workspace, cudaStream_t stream);
cudaError_t launch_attention_stats(const AttentionStatsMapParams& p, void* workspace, cudaStream_t stream);
cudaError_t launch_filter(const FilterParams& p, void* workspace, cudaStream_t stream);
cudaError_t launch_correlate(const CorrelateParams& p, void* workspace, cudaStream_t stream);
cudaError_t launch_token_attention(const TokenAttentionParams& p, void* workspace, cudaStream_t stream);
cudaError_t launch_correlate_tokens(const CorrelateTokensParams& p, void* workspace, cudaStream_t stream);
// Two kernels up to 1024 tokens, three beyond.
cudaError_t launch_match(const MatchParams& p, void* workspace, cudaStream_t stream);
// One kernel.
cudaError_t launch_cosines(const CosinesParams& p, cudaStream_t stream);
// Two kernels.
cudaError_t launch_greedy_select(const GreedySelectParams& p, void* workspace, cudaStream_t stream);
// One kernel.
cudaError_t launch_greedy_cover(const GreedyCoverParams& p, void* workspace, cudaStream_t stream);
// Two kernels.
cudaError_t launch_bipartite_thin(const BipartiteThinParams& p, void* workspace, cudaStream_t stream);
// One kernel.
cudaError_t launch_window_similarity(const WindowSimilarityParams& p, cudaStream_t stream);
// Three kernels up to 128 rows of text, two more for each further 128; one more for the softmax of few rows.
cudaError_t launch_received_from(const ReceivedFromParams& p, void* workspace, cudaStream_t stream);
// Two kernels.
cudaError_t launch_top_of_segments(const TopOfSegmentsParams& p, void* workspace, cudaStream_t stream);
cudaError_t launch_compress(const CompressParams& p, cudaStream_t stream);
cudaError_t launch_to_sequence(const ToSequenceParams& p, cudaStream_t stream);

// All of them: up to 1024 patches, 128 sources an image and 8 targets each four kernels (column means of probabilities:
// five), more beyond, for maps and without a class token.
cudaError_t launch_reduce(const ReduceParams& p, void* workspace, cudaStream_t stream);

// Up to 4096 visual tokens at most five kernels by logits, and seven by probabilities or a mix; see reduce_sequence.cu.
cudaError_t launch_reduce_sequence(const ReduceSequenceParams& p, void* workspace, cudaStream_t stream);

// The number of kernels that this process has launched.
int64_t launch_count();

}  // namespace ficoco
