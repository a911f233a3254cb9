// Targets among candidates, by direct attention and by attention through other tokens:
// C = gamma A[s, c] + (1 - gamma) A[s, o] diag(w) A[o, c]; with `column`, A[o, s]^T stands for A[s, o].
//
// token_blocks.cu makes two blocks of A: the rows of the sources, and the rows of the others, each at the columns it
// needs. Then one kernel adds the second term to the sources' rows, as a product of two matrices in float32. A block of
// threads owns 32 x 64 entries. A kernel after it chooses; or, as a part of another operator, each block lists the best
// of its entries for each source, and the last block of 32 sources chooses from these lists.
//
// 2 B H d (r m + r R + R m) FLOPs for logits; probabilities also need the softmax statistics of the rows. 2 B r R m for
// the second term. Bound by arithmetic. Shared memory 48 KB, 36 KB
// where the last block chooses.
#include "cuda/correlate.cuh"
#include "cuda/correlate_tokens.cuh"
#include "cuda/ptx.cuh"
#include "cuda/row_softmax.cuh"
#include "cuda/token_blocks.cuh"

namespace ficoco {
namespace {

constexpr int kWayColumns = 64, kWayOthers = 32;  // of one block, the others at a time
constexpr int kWayStages = 4;                     // of others in flight
constexpr int kWayThreads = kWaySources * kWayColumns / 16;

struct WayStep {
  float way[kWayOthers][kWaySources], from[kWayOthers][kWayColumns];
};

constexpr int kChooseLanes = 8;  // that choose for one source

// How a block of `add_way_kernel` that is the last of its sources chooses.
struct WayChoice {
  CorrelateParams p;
  Ranked* lists;  // (B, r, listed): the best `per_tile` of every 64 candidates
  int listed, per_tile;
  const int64_t* places;  // (B, m)
  uint32_t* counters;
  int64_t counter_step;
};

// Lists the best of this block's entries for each of its sources: 16 neighbouring lanes have a source's 64.
__device__ __forceinline__ void list_entries(const WayChoice& to, int64_t b, int64_t i0, int row, int column,
                                             int sources, int candidates, const float (&values)[4][4]) {
  static_assert(kWayColumns == 64);
  constexpr int kLanes = kWayColumns / 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    Ranked* list = to.lists + (b * to.p.r + i0 + row + i) * to.listed + static_cast<int>(blockIdx.x) * to.per_tile;
    Ranked last = ~Ranked{0};
    for (int t = 0; t < to.per_tile; ++t) {
      Ranked best = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const Ranked one = ranked(values[i][j], static_cast<int>(blockIdx.x) * kWayColumns + column + j);
        if (column + j < candidates && one < last) best = max(best, one);
      }
      last = best = best_of_lanes<kLanes>(best);
      if (threadIdx.x % kLanes == 0 && row + i < sources) list[t] = best;
    }
  }
}

// The choice of sources [i0, i0 + sources) of image b. `room` is shared memory for `numbers`.
__device__ __forceinline__ void choose_entries(const WayChoice& from, int64_t b, int64_t i0, int sources, Ranked* room,
                                               int numbers) {
  const int group = threadIdx.x / kChooseLanes;
  const int64_t* places = from.places + b * from.p.kept_count;
  const auto target_of = [&](int candidate) { return places[candidate]; };
  const Ranked* lists = from.lists + (b * from.p.r + i0) * from.listed;
  const bool fits = from.listed <= numbers;
  const int fit = fits ? numbers / from.listed : sources;
  for (int first = 0; first < sources; first += fit) {
    const int here = min(fit, sources - first);
    const Ranked* own = lists + first * static_cast<int64_t>(from.listed);
    if (fits) {
      for (int i = threadIdx.x; i < here * from.listed; i += kWayThreads) copy_async<8>(room + i, own + i, true);
      commit_copies();
      wait_for_copies<0>();
      __syncthreads();
      own = room;
    }
    for (int g = 0; g < here; g += kWayThreads / kChooseLanes) {
      const int i = min(g + group, here - 1);
      choose_targets<kChooseLanes>(from.p, own + i * static_cast<int64_t>(from.listed), from.listed,
                                   b * from.p.r + i0 + first + i, g + group < here, target_of);
    }
    __syncthreads();
  }
}

// direct[i][j] = gamma direct[i][j] + (1 - gamma) sum over t of way[t][i] from[t][j], t in order. A thread has four
// sources and four candidates. Rows of `way` and `from` begin every `way_step` and `from_step`, multiples of four. With
// kChoose the result is not stored, and targets are chosen.
template <bool kChoose>
__global__ void __launch_bounds__(kWayThreads, 4)
    add_way_kernel(const __grid_constant__ CorrelateTokensParams p, const float* way, int64_t way_step,
                   const float* from, int64_t from_step, float* direct, const __grid_constant__ WayChoice choice) {
  constexpr int kStages = kChoose ? kWayStages - 1 : kWayStages;  // the choice needs a little shared memory besides
  __shared__ __align__(16) WayStep steps[kStages];
  const int64_t j0 = static_cast<int64_t>(blockIdx.x) * kWayColumns,
                i0 = static_cast<int64_t>(blockIdx.y) * kWaySources;
  const int64_t b = blockIdx.z;
  const int others = static_cast<int>(p.other_count);
  way += b * others * way_step + i0;
  from += b * others * from_step + j0;
  const int sources = static_cast<int>(min(static_cast<int64_t>(kWaySources), p.r - i0));
  const int candidates = static_cast<int>(min(static_cast<int64_t>(kWayColumns), p.candidate_count - j0));
  const auto load = [&](int t0, WayStep& to) {
    constexpr int kWayPacks = kWaySources / 4, kFromPacks = kWayColumns / 4;
#pragma unroll
    for (int n = 0; n < kWayOthers * kWayPacks / kWayThreads; ++n) {
      const int i = threadIdx.x + n * kWayThreads, t = i / kWayPacks, at = i % kWayPacks * 4;
      const bool exists = t0 + t < others && at < sources;
      copy_async<16>(&to.way[t][at], exists ? way + (t0 + t) * way_step + at : way, exists);
    }
#pragma unroll
    for (int n = 0; n < kWayOthers * kFromPacks / kWayThreads; ++n) {
      const int i = threadIdx.x + n * kWayThreads, t = i / kFromPacks, at = i % kFromPacks * 4;
      const bool exists = t0 + t < others && at < candidates;
      copy_async<16>(&to.from[t][at], exists ? from + (t0 + t) * from_step + at : from, exists);
    }
    commit_copies();
  };
  const int row = threadIdx.x / (kWayColumns / 4) * 4, column = threadIdx.x % (kWayColumns / 4) * 4;
  float sums[4][4] = {};
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) load(stage * kWayOthers, steps[stage]);
  for (int t0 = 0, stage = 0; t0 < others; t0 += kWayOthers, stage = (stage + 1) % kStages) {
    wait_for_copies<kStages - 2>();
    __syncthreads();  // all copies have arrived, and no thread still reads what the next ones overwrite
    load(t0 + (kStages - 1) * kWayOthers, steps[(stage + kStages - 1) % kStages]);  // zeros after the last
#pragma unroll 8
    for (int t = 0; t < kWayOthers; ++t) {
      const float4 w = *reinterpret_cast<const float4*>(&steps[stage].way[t][row]);
      const float4 f = *reinterpret_cast<const float4*>(&steps[stage].from[t][column]);
      const float x[4] = {w.x, w.y, w.z, w.w}, y[4] = {f.x, f.y, f.z, f.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] = fmaf(x[i], y[j], sums[i][j]);
      }
    }
  }
  wait_for_copies<0>();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (row + i >= sources || column + j >= candidates) continue;
      float& value = direct[(b * p.r + i0 + row + i) * p.candidate_count + j0 + column + j];
      sums[i][j] = p.gamma * value + (1.f - p.gamma) * sums[i][j];
      if (!kChoose) value = sums[i][j];
    }
  }
  if constexpr (kChoose) {
    list_entries(choice, b, i0, row, column, sources, candidates, sums);
    if (!last_block(choice.counters + b * choice.counter_step + blockIdx.y, gridDim.x)) return;
    choose_entries(choice, b, i0, sources, reinterpret_cast<Ranked*>(steps), sizeof(steps) / sizeof(Ranked));
  }
}

// Entries that a tile lists for a source, and all of its lists.
int per_tile(const CorrelateTokensParams& p) { return static_cast<int>(min(p.k, int64_t{kWayColumns})); }
int listed(const CorrelateTokensParams& p) {
  return static_cast<int>(ceil_div(p.candidate_count, kWayColumns)) * per_tile(p);
}

}  // namespace

CorrelateTokensWork take_correlate_tokens(const CorrelateTokensParams& p, bool known, Pieces& pieces) {
  CorrelateTokensWork w{};
  const auto softmax = [&](int64_t count) { return take_row_softmax(pieces, p.batch, p.query.heads, count, p.keys); };
  w.direct = pieces.take<float>(p.batch, p.r, p.candidate_count);
  w.way = pieces.take<float>(p.batch, p.other_count, round_up(p.r, 4));
  w.from = pieces.take<float>(p.batch, p.other_count, round_up(p.candidate_count, 4));
  if (known) {
    w.lists = pieces.take<Ranked>(p.batch, p.r, listed(p));
  } else if (p.probs) {
    w.sources = softmax(p.r);
    w.others = softmax(p.other_count);
  }
  return w;
}

namespace {

cudaError_t launch_rows(const CorrelateTokensParams& p, const List& rows, const RowSoftmax& out, cudaStream_t stream) {
  RowSoftmaxParams params{p.query, p.key, rows.tokens, p.batch, p.keys, p.width, rows.count, 0, p.scale, out};
  params.offset = p.offset;
  params.causal = p.causal;
  params.key_mask = p.key_mask;
  return launch_row_softmax(params, stream);
}

// `of_sources` and `of_others` are the statistics of their rows, for probabilities. With `choose`, which may be
// nullptr, targets are chosen too.
cudaError_t launch_scores(const CorrelateTokensParams& p, const CorrelateTokensWork& w,
                          const RowSoftmax& sources_softmax, const RowSoftmax& others_softmax, const WayChoice* choose,
                          cudaStream_t stream) {
  const List sources{p.sources, p.r}, candidates{p.candidates, p.candidate_count}, others{p.others, p.other_count};
  const int64_t way_step = round_up(p.r, 4), from_step = round_up(p.candidate_count, 4);
  BlockParams params{{}, p.query, p.key, p.batch, p.keys, p.offset, p.width, p.scale, p.probs, p.causal, p.key_mask};
  TokenBlock &of_sources = params.blocks[0], &of_others = params.blocks[1];
  of_sources.rows = sources;
  of_sources.softmax = sources_softmax;
  of_sources.columns[0] = {candidates, nullptr, nullptr, w.direct, p.r * p.candidate_count, p.candidate_count, 1};
  const bool by_way = p.gamma < 1.f;
  if (by_way) {
    of_others.rows = others;
    of_others.softmax = others_softmax;
    of_others.columns[0] = {candidates, nullptr, nullptr, w.from, p.other_count * from_step, from_step, 1};
    const int64_t image = p.other_count * way_step;  // of `way`, which is weighted and stored by others
    if (p.column) {
      of_others.columns[1] = {sources, p.others_weight, nullptr, w.way, image, way_step, 1};
    } else {
      of_sources.columns[1] = {others, nullptr, p.others_weight, w.way, image, 1, way_step};
    }
  }
  FICOCO_TRY(launch_token_blocks(params, stream));
  if (!by_way && !choose) return cudaSuccess;
  CorrelateTokensParams added = p;
  if (!by_way) added.other_count = 0;
  const dim3 grid(ceil_div(p.candidate_count, kWayColumns), ceil_div(p.r, kWaySources), p.batch);
  const auto go = [&](auto kernel, const WayChoice& choice) {
    kernel<<<grid, kWayThreads, 0, stream>>>(added, w.way, way_step, w.from, from_step, w.direct, choice);
    return launched();
  };
  return choose ? go(add_way_kernel<true>, *choose) : go(add_way_kernel<false>, WayChoice{});
}

CorrelateParams choice_of(const CorrelateTokensParams& p) {
  CorrelateParams choice{};
  choice.batch = p.batch;
  choice.r = p.r;
  choice.kept_count = p.candidate_count;
  choice.k = p.k;
  choice.alpha = p.alpha;
  choice.targets = p.targets;
  choice.weights = p.weights;
  return choice;
}

}  // namespace

size_t workspace_bytes(const CorrelateTokensParams& p) {
  Pieces pieces(nullptr);
  take_correlate_tokens(p, false, pieces);
  return pieces.used();
}

cudaError_t launch_correlate_tokens(const CorrelateTokensParams& p, void* workspace, cudaStream_t stream) {
  if (p.batch * p.r * p.k == 0) return cudaSuccess;
  Pieces pieces(workspace);
  const CorrelateTokensWork w = take_correlate_tokens(p, false, pieces);
  if (p.probs) {
    FICOCO_TRY(launch_rows(p, {p.sources, p.r}, w.sources, stream));
    if (p.gamma < 1.f) FICOCO_TRY(launch_rows(p, {p.others, p.other_count}, w.others, stream));
  }
  FICOCO_TRY(launch_scores(p, w, w.sources, w.others, nullptr, stream));
  return launch_choose(choice_of(p), w.direct, stream);
}

cudaError_t launch_correlate_tokens(const CorrelateTokensParams& p, const KnownTokens& known,
                                    const CorrelateTokensWork& w, cudaStream_t stream) {
  if (p.batch * p.r * p.k == 0) return cudaSuccess;
  const WayChoice choice{choice_of(p), w.lists,        listed(p),         per_tile(p),
                         known.places, known.counters, known.counter_step};
  return launch_scores(p, w, known.all, known.all, &choice, stream);
}

}  // namespace ficoco
