// All that a reducing layer of a language model does with its sequence, in a few kernels.
//
//   by logits, 5         sums of keys; inner products with them, whose last block chooses and writes where everything
//                        then is; blocks of attention; the way by the text, whose last blocks choose targets; merge
//   by probabilities, 7  softmax statistics of all rows; lists, and the union of shared rows; attention sums; the
//                        choice; blocks of attention, by the same statistics; the way and the targets; merge
//   by the last token    with 0 targets 5: lists; its products with all keys; its attention; the choice; merge. One
//                        more if its query rows take the general way, and two more with targets.
//
// With 0 targets the blocks and the way are left out. A correlation by probabilities after a filter by logits adds the
// statistics (one or two kernels). Beyond 4096 visual tokens, or windows of a grid, a choice by logits is a kernel of
// its own.
//
// FLOPs and exponentials are those of the parts: see visual_scores.cu, row_softmax.cu, token_attention.cu,
// token_blocks.cu, correlate_tokens.cu, compress.cu. Statistics are computed once, but of all N rows: operators in a
// row compute those of visual tokens and text, or of sources and text after a filter by logits, and those of the
// sources again. That is more where much text stands before the pictures. Lists of 8 (N + 4 n) bytes are written
// besides.
#include "cuda/correlate_tokens.cuh"
#include "cuda/few_queries.cuh"
#include "cuda/token_attention.cuh"
#include "cuda/visual_scores.cuh"
#include "images.h"

namespace ficoco {
namespace {

bool correlates(const ReduceSequenceParams& p) { return p.r * p.k > 0; }
bool by_lists(const ReduceSequenceParams& p) { return p.ranking != Ranking::kLogits; }
bool needs_softmax(const ReduceSequenceParams& p) { return p.ranking == Ranking::kProbs || (correlates(p) && p.probs); }

struct Workspace {
  uint32_t* counters;
  int64_t counter_count;
  int64_t *others, *candidates, *text;
  float *others_weight, *text_share;
  VisualWork visual;
  RowSoftmax all, last;
  FewQueries few;
  float* scores;
  CorrelateTokensWork links;
};

// The attention whose sums rank the visual tokens, from lists.
TokenAttentionParams ranking_of(const ReduceSequenceParams& p, const Workspace& w) {
  const bool last = p.ranking == Ranking::kLast;
  TokenAttentionParams q{};
  q.query = p.query;
  q.key = p.key;
  q.tokens = p.visual;
  q.others = w.others;
  q.weights = w.others_weight;
  q.key_mask = p.real;
  q.batch = p.batch;
  q.keys = p.count;
  q.width = p.width;
  q.count = p.visual_count;
  q.other_count = last ? 1 : p.visual_count + p.after;
  q.sets = last ? 1 : 2;
  q.scale = p.scale;
  q.probs = q.column = q.causal = true;
  q.out = w.scores;
  return q;
}

// One query row against all keys, by few_queries.cu.
bool takes_few(const ReduceSequenceParams& p) {
  return p.ranking == Ranking::kLast && !needs_softmax(p) && are_few_queries(ranking_of(p, {}));
}

CorrelateTokensParams links_of(const ReduceSequenceParams& p, const Workspace& w) {
  CorrelateTokensParams q{};
  q.query = p.query;
  q.key = p.key;
  q.sources = p.sources;
  q.candidates = w.candidates;
  q.others = w.text;
  q.others_weight = w.text_share;
  q.key_mask = p.real;
  q.batch = p.batch;
  q.keys = p.count;
  q.width = p.width;
  q.r = p.r;
  q.candidate_count = p.visual_count - p.r;
  q.other_count = p.after;
  q.k = p.k;
  q.scale = p.scale;
  q.gamma = p.gamma;
  q.alpha = p.alpha;
  q.probs = q.column = q.causal = p.probs;
  q.targets = p.targets;
  q.weights = p.weights;
  return q;
}

Workspace take(const ReduceSequenceParams& p, Pieces& pieces) {
  Workspace w{};
  w.counter_count = kVisualCounters + ceil_div(p.r, kWaySources);
  w.counters = pieces.take<uint32_t>(p.batch, w.counter_count);
  w.visual = take_visual_work(p, pieces);
  const int64_t heads = p.query.heads;
  if (needs_softmax(p)) w.all = take_row_softmax(pieces, p.batch, heads, p.count, p.count);
  w.all.of_all = true;
  if (by_lists(p)) {
    const TokenAttentionParams ranking = ranking_of(p, w);
    w.others = pieces.take<int64_t>(p.batch, ranking.other_count);
    w.others_weight = pieces.take<float>(p.batch, ranking.sets, ranking.other_count);
    if (takes_few(p)) w.few = take_few_queries(ranking, pieces);
    if (!takes_few(p) && !needs_softmax(p)) w.last = take_row_softmax(pieces, p.batch, heads, 1, p.count);
    w.scores = pieces.take<float>(p.batch, takes_few(p) ? 1 : heads, ranking.sets, p.visual_count);
  }
  if (correlates(p)) {
    w.candidates = pieces.take<int64_t>(p.batch, p.visual_count - p.r);
    w.text = pieces.take<int64_t>(p.batch, p.after);
    w.text_share = pieces.take<float>(p.batch, p.after);
    w.links = take_correlate_tokens(links_of(p, w), true, pieces);
  }
  return w;
}

RowSoftmaxParams softmax_of(const ReduceSequenceParams& p, const int64_t* rows, int64_t count, const RowSoftmax& out) {
  RowSoftmaxParams q{p.query, p.key, rows, p.batch, p.count, p.width, count, 0, p.scale, out};
  q.causal = true;
  q.key_mask = p.real;
  return q;
}

__global__ void __launch_bounds__(256) lists_kernel(SequenceLists lists) { write_lists(lists, blockIdx.x); }

// Softmax statistics, lists, and the choice by what the listed tokens attend to.
cudaError_t launch_listed(const ReduceSequenceParams& p, const Workspace& w, const VisualChoice& choice,
                          cudaStream_t stream) {
  const bool last = p.ranking == Ranking::kLast;
  const SequenceLists lists{p.visual,      p.real,      p.count,  p.visual_count,  p.after,    last,
                            p.visual_mean, p.text_mean, w.others, w.others_weight, w.counters, w.counter_count};
  const TokenAttentionParams ranking = ranking_of(p, w);
  if (needs_softmax(p)) {
    FICOCO_TRY(launch_row_softmax(softmax_of(p, nullptr, p.count, w.all), stream, lists));
    FICOCO_TRY(launch_head_sums(ranking, w.all, w.scores, stream));
  } else {
    lists_kernel<<<static_cast<unsigned>(p.batch), 256, 0, stream>>>(lists);
    FICOCO_TRY(launched());
    if (takes_few(p)) {
      FICOCO_TRY(launch_few_queries(ranking, w.few, stream));
    } else {
      FICOCO_TRY(launch_row_softmax(softmax_of(p, w.others, 1, w.last), stream));
      FICOCO_TRY(launch_head_sums(ranking, w.last, w.scores, stream));
    }
  }
  const int parts = takes_few(p) ? 1 : static_cast<int>(p.query.heads);
  const int64_t n = p.visual_count, part = ranking.sets * n;
  const VisualScores scores{
      w.scores, parts, parts * part, part, n, static_cast<int>(ranking.sets), 1.f / static_cast<float>(parts), false};
  return launch_visual_choice(p, w.visual, scores, choice, stream);
}

}  // namespace

size_t workspace_bytes(const ReduceSequenceParams& p) {
  Pieces pieces(nullptr);
  take(p, pieces);
  return pieces.used();
}

cudaError_t launch_reduce_sequence(const ReduceSequenceParams& p, void* workspace, cudaStream_t stream) {
  if (p.batch == 0) return cudaSuccess;
  Pieces pieces(workspace);
  const Workspace w = take(p, pieces);
  const VisualChoice choice{w.candidates, w.text, w.text_share};
  if (by_lists(p)) {
    FICOCO_TRY(launch_listed(p, w, choice, stream));
  } else {
    FICOCO_TRY(launch_visual_logits(p, w.visual, choice, w.counters, w.counter_count, stream));
    if (needs_softmax(p)) FICOCO_TRY(launch_row_softmax(softmax_of(p, nullptr, p.count, w.all), stream));
  }
  if (correlates(p)) {
    const KnownTokens known{w.all, p.left_visual, w.counters + kVisualCounters, w.counter_count};
    FICOCO_TRY(launch_correlate_tokens(links_of(p, w), known, w.links, stream));
  }
  return launch_compress(compress_of(p), stream);
}

}  // namespace ficoco
