// Targets among candidates, by direct attention and by attention through other tokens:
// C = gamma A[s, c] + (1 - gamma) A[s, o] diag(w) A[o, c]; with `column`, A[o, s]^T stands for A[s, o].
//
// token_blocks.cu makes two blocks of A: the rows of the sources, and the rows of the others, each at the columns it
// needs. Then one kernel adds the second term to the sources' rows, as a product of two matrices in float32. A block of
// threads owns 32 x 64 entries.
//
// 2 B H d (r m + r R + R m) FLOPs for logits; probabilities also need the softmax statistics of the rows. 2 B r R m for
// the second term. Bound by arithmetic. Shared memory 48 KB.
#include "cuda/correlate.cuh"
#include "cuda/ptx.cuh"
#include "cuda/row_softmax.cuh"
#include "cuda/token_blocks.cuh"

namespace ficoco {
namespace {

constexpr int kWaySources = 32, kWayColumns = 64, kWayOthers = 32;  // of one block, the others at a time
constexpr int kWayStages = 4;                                       // of others in flight
constexpr int kWayThreads = kWaySources * kWayColumns / 16;

struct WayStep {
  float way[kWayOthers][kWaySources], from[kWayOthers][kWayColumns];
};

// direct[i][j] = gamma direct[i][j] + (1 - gamma) sum over t of way[t][i] from[t][j], t in order. A thread has four
// sources and four candidates. Rows of `way` and `from` begin every `way_step` and `from_step`, multiples of four.
__global__ void __launch_bounds__(kWayThreads, 4)
    add_way_kernel(CorrelateTokensParams p, const float* way, int64_t way_step, const float* from, int64_t from_step,
                   float* direct) {
  __shared__ __align__(16) WayStep steps[kWayStages];
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
  for (int stage = 0; stage < kWayStages - 1; ++stage) load(stage * kWayOthers, steps[stage]);
  for (int t0 = 0, stage = 0; t0 < others; t0 += kWayOthers, stage = (stage + 1) % kWayStages) {
    wait_for_copies<kWayStages - 2>();
    __syncthreads();  // all copies have arrived, and no thread still reads what the next ones overwrite
    load(t0 + (kWayStages - 1) * kWayOthers, steps[(stage + kWayStages - 1) % kWayStages]);  // zeros after the last
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
      value = p.gamma * value + (1.f - p.gamma) * sums[i][j];
    }
  }
}

struct Workspace {
  float *direct, *way, *from;
  RowSoftmax sources, others;
};

Workspace take(const CorrelateTokensParams& p, Pieces& pieces) {
  Workspace w{};
  const auto softmax = [&](int64_t count) { return take_row_softmax(pieces, p.batch, p.query.heads, count, p.keys); };
  w.direct = pieces.take<float>(p.batch, p.r, p.candidate_count);
  w.way = pieces.take<float>(p.batch, p.other_count, round_up(p.r, 4));
  w.from = pieces.take<float>(p.batch, p.other_count, round_up(p.candidate_count, 4));
  if (p.probs) {
    w.sources = softmax(p.r);
    w.others = softmax(p.other_count);
  }
  return w;
}

cudaError_t launch_rows(const CorrelateTokensParams& p, const List& rows, const RowSoftmax& out, cudaStream_t stream) {
  RowSoftmaxParams params{p.query, p.key, rows.tokens, p.batch, p.keys, p.width, rows.count, 0, p.scale, out};
  params.offset = p.offset;
  params.causal = p.causal;
  params.key_mask = p.key_mask;
  return launch_row_softmax(params, stream);
}

}  // namespace

size_t workspace_bytes(const CorrelateTokensParams& p) {
  Pieces pieces(nullptr);
  take(p, pieces);
  return pieces.used();
}

cudaError_t launch_correlate_tokens(const CorrelateTokensParams& p, void* workspace, cudaStream_t stream) {
  if (p.batch * p.r * p.k == 0) return cudaSuccess;
  Pieces pieces(workspace);
  const Workspace w = take(p, pieces);
  const List sources{p.sources, p.r}, candidates{p.candidates, p.candidate_count}, others{p.others, p.other_count};
  const int64_t way_step = round_up(p.r, 4), from_step = round_up(p.candidate_count, 4);
  BlockParams params{{}, p.query, p.key, p.batch, p.keys, p.offset, p.width, p.scale, p.probs, p.causal, p.key_mask};
  TokenBlock &of_sources = params.blocks[0], &of_others = params.blocks[1];
  of_sources.rows = sources;
  of_sources.softmax = w.sources;
  of_sources.columns[0] = {candidates, nullptr, nullptr, w.direct, p.r * p.candidate_count, p.candidate_count, 1};
  if (p.probs) FICOCO_TRY(launch_rows(p, sources, w.sources, stream));
  if (p.gamma < 1.f) {
    of_others.rows = others;
    of_others.softmax = w.others;
    of_others.columns[0] = {candidates, nullptr, nullptr, w.from, p.other_count * from_step, from_step, 1};
    const int64_t image = p.other_count * way_step;  // of `way`, which is weighted and stored by others
    if (p.column) {
      of_others.columns[1] = {sources, p.others_weight, nullptr, w.way, image, way_step, 1};
    } else {
      of_sources.columns[1] = {others, nullptr, p.others_weight, w.way, image, 1, way_step};
    }
    if (p.probs) FICOCO_TRY(launch_rows(p, others, w.others, stream));
  }
  FICOCO_TRY(launch_token_blocks(params, stream));
  if (p.gamma < 1.f) {
    const dim3 grid(ceil_div(p.candidate_count, kWayColumns), ceil_div(p.r, kWaySources), p.batch);
    add_way_kernel<<<grid, kWayThreads, 0, stream>>>(p, w.way, way_step, w.from, from_step, w.direct);
    FICOCO_TRY(launched());
  }
  CorrelateParams choice{};
  choice.batch = p.batch;
  choice.r = p.r;
  choice.kept_count = p.candidate_count;
  choice.k = p.k;
  choice.alpha = p.alpha;
  choice.targets = p.targets;
  choice.weights = p.weights;
  return launch_choose(choice, w.direct, stream);
}

}  // namespace ficoco
