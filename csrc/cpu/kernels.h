// The CPU kernels, one per operator, as the operators see them. Each works on one image: `batch` is 1 and pointers are
// the image's own. Work is cut by shape alone, never by the number of threads, so results do not depend on it.
#pragma once
#include <algorithm>
#include <vector>

#include "params.h"

namespace ficoco {

// What is wrong with the values read, the worst last. If a score or a correlation is not finite, nothing that depends
// on it is written.
enum class Fault {
  kNone,
  kNegativeRatio,
  kTooFewTokens,
  kTooFewToCover,
  kSaliency,
  kFeatureNotFinite,
  kCoverNotFinite,
  kListTooShort,
  kThinnedNotFinite,
  kSegmentTotal,
  kSegmentCount,
  kSegmentScore,
  kCorrelationNotFinite,
  kScoreNotFinite,
  kKeyNotFinite,
  kNoPartition,
  kNotAscending
};

inline Fault worst(const std::vector<Fault>& faults) {
  return faults.empty() ? Fault::kNone : *std::max_element(faults.begin(), faults.end());
}

void attention_stats_image(const AttentionStatsParams& p);
void attention_stats_image(const AttentionStatsMapParams& p);
Fault filter_image(const FilterParams& p);
Fault correlate_image(const CorrelateParams& p);
Fault match_image(const MatchParams& p);
void cosines_image(const CosinesParams& p);
Fault greedy_select_image(const GreedySelectParams& p);
Fault greedy_cover_image(const GreedyCoverParams& p);
Fault bipartite_thin_image(const BipartiteThinParams& p);
void window_similarity_image(const WindowSimilarityParams& p);
void received_from_image(const ReceivedFromParams& p);
Fault top_of_segments_image(const TopOfSegmentsParams& p);
void token_attention_image(const TokenAttentionParams& p);
Fault correlate_tokens_image(const CorrelateTokensParams& p);
Fault to_sequence_image(const ToSequenceParams& p);
void compress_image(const CompressParams& p);
Fault reduce_sequence_image(const ReduceSequenceParams& p);

}  // namespace ficoco
