// Launches the routes of attention_stats, with or without the filter as their tail.
#pragma once
#include "cuda/row_softmax.cuh"
#include "cuda/utils.cuh"

namespace ficoco {

constexpr int64_t kFusedPatches = 1024;  // up to here the last block of an image can filter it

bool can_filter_in_tail(const FilterParams& p);
void take_logits_workspace(const AttentionStatsParams& p, Pieces& pieces);
// `filter` may be nullptr. `counters` (B), for a later kernel, are set to 0; may be nullptr.
cudaError_t launch_logits_stats(const AttentionStatsParams& p, const FilterParams* filter, uint32_t* counters,
                                Pieces& pieces, cudaStream_t stream);

// Launches the route of probabilities. With `filter`, which can_filter_in_tail, each image is filtered and `counters`
// (B) are set to 0 for a later kernel. `known` gets the statistics of all tokens, if they are there; may be nullptr.
void take_probability_workspace(const AttentionStatsParams& p, Pieces& pieces);
cudaError_t launch_probability_stats(const AttentionStatsParams& p, const FilterParams* filter, uint32_t* counters,
                                     Pieces& pieces, KnownSoftmax* known, cudaStream_t stream);

// Launches the route of keys alone, where there is no class token.
size_t key_stats_workspace(const AttentionStatsParams& p);
cudaError_t launch_key_stats(const AttentionStatsParams& p, void* workspace, cudaStream_t stream);

}  // namespace ficoco
