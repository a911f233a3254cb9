// Weighted sums of the attention between chosen tokens.
//
// Logits: a weighted sum of inner products is one inner product with the weighted sum. The first kernel adds up rows in
// chunks of 128, the second adds the chunks, the third takes the inner products, with a warp a token. 4 W (N + R) H d
// FLOPs, bound by memory.
//
// Probabilities: softmax statistics of the query rows (row_softmax.cu). Then a block owns 64 tokens and walks over all
// others, 64 at a time; it sums each tile and does not store it. Half precision with up to 128 channels a head goes by
// wide_pairs.cu. 2 B Q (T + K) H d FLOPs for Q query rows and K looked-up keys, bound by arithmetic; memory O((Q + W N)
// H). Few queries over many keys go by few_queries.cu.
#include "cuda/few_queries.cuh"
#include "cuda/row_softmax.cuh"
#include "cuda/tile.cuh"
#include "cuda/token_attention.cuh"
#include "cuda/wide_pairs.cuh"

namespace ficoco {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kChunk = 128;  // rows that a block adds up
constexpr int kSets = 4;     // sets of weights that a kernel takes at once
constexpr int kBatch = 4;    // reads of a lane in flight at once

__device__ __forceinline__ void check_token(int64_t token, int64_t first, int64_t keys) {
  assert(token >= first && token < keys && "ficoco::token_attention: an index is no token, or its query is not there");
  (void)token;
  (void)first;
  (void)keys;
}

// partial[b][chunk][set][head][c] = sum over the chunk's others of weight * row, for sets [set0, set0 + kSets).
template <class T, bool kVector>
__global__ void __launch_bounds__(kThreads, 2)
    weighted_sum_kernel(TokenAttentionParams p, View<T> rows, int64_t shift, int64_t set0, float* partial) {
  __shared__ float warp_sums[kWarps][kWarp * kPer<T> + 1];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t chunk = blockIdx.x, b = blockIdx.z, per_head = ceil_div(p.width, kPer<T>);
  const int64_t pack = blockIdx.y * kWarp + lane, h = pack / per_head, c = pack % per_head * kPer<T>;
  const bool mine = h < rows.heads;
  const int sets = static_cast<int>(min(static_cast<int64_t>(kSets), p.sets - set0));
  __shared__ int64_t others[kChunk];
  __shared__ float weights[kSets][kChunk];
  const int64_t begin = chunk * kChunk;
  const int count = static_cast<int>(min(static_cast<int64_t>(kChunk), p.other_count - begin));
  for (int r = threadIdx.x; r < count; r += kThreads) {
    others[r] = p.others[b * p.other_count + begin + r];
    check_token(others[r], shift, p.keys);
    for (int w = 0; w < sets; ++w) weights[w][r] = p.weights[(b * p.sets + set0 + w) * p.other_count + begin + r];
  }
  __syncthreads();
  float sums[kSets][kPer<T>] = {};
  for (int r0 = warp; r0 < count; r0 += kBatch * kWarps) {
    Pack<T> x[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int r = r0 + i * kWarps;
      x[i] = {};
      if (mine && r < count) x[i] = load_pack<T, kVector>(rows.row(b, h, others[r] - shift) + c, p.width - c);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int r = r0 + i * kWarps;
#pragma unroll
      for (int w = 0; w < kSets; ++w) {
        const float weight = w < sets && r < count ? weights[w][r] : 0.f;
#pragma unroll
        for (int e = 0; e < kPer<T>; ++e) sums[w][e] = fmaf(weight, to_float(x[i].x[e]), sums[w][e]);
      }
    }
  }
#pragma unroll
  for (int w = 0; w < kSets; ++w) {
    if (w >= sets) break;
    __syncthreads();
#pragma unroll
    for (int e = 0; e < kPer<T>; ++e) warp_sums[warp][lane * kPer<T> + e] = sums[w][e];
    __syncthreads();
    for (int i = threadIdx.x; i < kWarp * kPer<T>; i += kThreads) {
      const int64_t of = blockIdx.y * kWarp + i / kPer<T>, head = of / per_head;
      const int64_t channel = of % per_head * kPer<T> + i % kPer<T>;
      if (head >= rows.heads || channel >= p.width) continue;
      float total = 0.f;
      for (int other = 0; other < kWarps; ++other) total += warp_sums[other][i];
      partial[(((b * gridDim.x + chunk) * p.sets + set0 + w) * rows.heads + head) * p.width + channel] = total;
    }
  }
}

// sums[b][i] = sum over chunks of partial[b][chunk][i], i < state.
__global__ void __launch_bounds__(kThreads, 2)
    add_chunks_kernel(const float* partial, int64_t chunks, int64_t state, float* sums) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, b = blockIdx.y;
  if (i >= state) return;
  float total = 0.f;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) total += partial[(b * chunks + chunk) * state + i];
  sums[b * state + i] = total;
}

// One warp a token: inner products of its rows with the weighted sums, over all query heads.
template <class T, bool kVector>
__global__ void __launch_bounds__(kThreads, 2)
    token_dots_kernel(TokenAttentionParams p, View<T> rows, int64_t shift, int64_t sum_heads, const float* sums) {
  const int lane = threadIdx.x % kWarp;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp, b = blockIdx.y;
  if (i >= p.count) return;
  const int64_t token = p.tokens[b * p.count + i], heads = p.query.heads;
  const int per_head = static_cast<int>(ceil_div(p.width, kPer<T>)), packs = per_head * static_cast<int>(heads);
  const int group = static_cast<int>(heads / rows.heads), sum_group = static_cast<int>(heads / sum_heads);
  check_token(token, shift, p.keys);
  for (int64_t w = 0; w < p.sets; ++w) {
    float dot = 0.f;
    for (int at0 = lane; at0 < packs; at0 += kBatch * kWarp) {
      Pack<T> x[kBatch];
      float y[kBatch][kPer<T>];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int at = at0 + i * kWarp, h = at / per_head;
        const int64_t c = at % per_head * kPer<T>, left = at < packs ? p.width - c : 0;
        x[i] = {};
        if (left > 0) x[i] = load_pack<T, kVector>(rows.row(b, h / group, token - shift) + c, left);
        const float* from = sums + ((b * p.sets + w) * sum_heads + h / sum_group) * p.width + c;
#pragma unroll
        for (int e = 0; e < kPer<T>; e += 4) {
          Pack<float> four = {};
          if (left > e) four = load_pack<float, kVector>(from + e, left - e);
#pragma unroll
          for (int f = 0; f < 4; ++f) y[i][e + f] = four.x[f];
        }
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
#pragma unroll
        for (int e = 0; e < kPer<T>; ++e) dot = fmaf(to_float(x[i].x[e]), y[i][e], dot);
      }
    }
    dot = warp_sum(dot);
    if (lane == 0) p.out[(b * p.sets + w) * p.count + i] = dot * p.scale / static_cast<float>(heads);
  }
}

// parts[b][h][set][token]: probabilities of one head between 64 tokens and all others, weighted. The products' rows are
// the tokens, be they queries or keys, their columns the others.
template <class T, bool kVector, bool kColumn>
__global__ void __launch_bounds__(kTileThreads, 2)
    token_pairs_kernel(TokenAttentionParams p, View<T> query, View<T> key, RowSoftmax softmax, int64_t set0,
                       float* parts) {
  extern __shared__ __align__(128) unsigned char storage[];
  auto& shared = *reinterpret_cast<TileShared<T, kStages>*>(storage);
  using Sums = TileSums<T>;
  struct Others {
    int64_t token[kTile];
    float weight[kSets][kTile];
  };
  __shared__ int64_t tokens[kTile];
  __shared__ Others others[3];  // of the last turn, this one and the next
  static_assert(kSets * kTile == kTileThreads && kStages == 2, "a thread brings one weight, a turn ahead");
  const int64_t i0 = static_cast<int64_t>(blockIdx.x) * kTile, h = blockIdx.y, b = blockIdx.z;
  const int64_t key_head = h / (query.heads / key.heads);
  const int rows = static_cast<int>(min(static_cast<int64_t>(kTile), p.count - i0));
  const int sets = static_cast<int>(min(static_cast<int64_t>(kSets), p.sets - set0));
  const int64_t query_count = kColumn ? p.other_count : p.count, head = b * query.heads + h;
  const int64_t first_token = kColumn ? 0 : p.offset, first_other = kColumn ? p.offset : 0;
  const int64_t* list = p.others + b * p.other_count;
  const int turns = static_cast<int>(ceil_div(p.other_count, kTile)), chunks = chunks_of(p.width);
  const int token_turns = turns_to_load<kStages>(chunks);
  const auto columns_of = [&](int turn) { return min(kTile, static_cast<int>(p.other_count) - turn * kTile); };
  if (threadIdx.x < kTile) {
    const int i = threadIdx.x;
    tokens[i] = i < rows ? p.tokens[b * p.count + i0 + i] : first_token;
    others[0].token[i] = i < columns_of(0) ? list[i] : first_other;
    check_token(tokens[i], first_token, p.keys);
  }
  __syncthreads();
  const auto query_row = [&](int64_t token) { return query.row(b, h, token - p.offset); };
  const auto key_row = [&](int64_t token) { return key.row(b, key_head, token); };
  const float scale_log2 = p.scale * kLog2e;
  float totals[kSets][Sums::kRows] = {};
  Sums sums;
  const auto load = [&](int turn, int chunk, TileStep<T>& to) {
    const int64_t r0 = static_cast<int64_t>(turn) * kTile, c = static_cast<int64_t>(chunk) * kTile;
    const int columns = columns_of(turn), j = threadIdx.x % kTile, w = threadIdx.x / kTile;
    Others &own = others[turn % 3], &next = others[(turn + 1) % 3];
    const auto token_row = [&](int i) { return kColumn ? key_row(tokens[i]) : query_row(tokens[i]); };
    const auto other_row = [&](int k) {  // checked by the thread that reads the row, so it is checked before it is read
      check_token(own.token[k], first_other, p.keys);
      return kColumn ? query_row(own.token[k]) : key_row(own.token[k]);
    };
    if (turn < token_turns) to.a.template load<kVector>(token_row, rows, c, p.width);
    to.b.template load<kVector>(other_row, columns, c, p.width);
    if (chunk != chunks - 1) return;
    if (w == 0 && turn + 1 < turns && j < columns_of(turn + 1)) {  // ready when the next turn's rows are requested
      copy_async<8>(&next.token[j], list + r0 + kTile + j, true);
    }
    const bool exists = j < columns && w < sets;
    copy_async<4>(&own.weight[w][j], p.weights + (exists ? (b * p.sets + set0 + w) * p.other_count + r0 + j : 0),
                  exists);
    const auto statistic = [&](int i) {
      return softmax.at(head, query_count, p.keys, (kColumn ? r0 : i0) + i, kColumn ? own.token[i] : tokens[i]);
    };
    to.load_softmax(softmax.top, softmax.inverse, statistic, kColumn ? columns : rows);
  };
  const auto is_key = [&](int64_t token) { return !p.key_mask || p.key_mask[b * p.keys + token]; };
  bool counts[Sums::kRows];  // rows that are there, and as keys not masked
#pragma unroll
  for (int i = 0; i < Sums::kRows; ++i) {
    counts[i] = Sums::row(i) < rows && (!kColumn || is_key(tokens[Sums::row(i)]));
  }
  walk(shared, turns, chunks, load, [&](int turn, int chunk, const TileStep<T>& from) {
    sums.add(from.a, from.b);
    if (chunk != chunks - 1) return;
    const Others& here = others[turn % 3];
    const int columns = columns_of(turn);
#pragma unroll
    for (int j = 0; j < Sums::kColumns; ++j) {
      const int column = Sums::column(j);
      if (column >= columns) continue;
      const int64_t other = here.token[column];
      if (!kColumn && !is_key(other)) continue;
      float weight[kSets];
#pragma unroll
      for (int w = 0; w < kSets; ++w) weight[w] = here.weight[w][column];
#pragma unroll
      for (int i = 0; i < Sums::kRows; ++i) {
        const int row = Sums::row(i), statistic = kColumn ? column : row;
        const bool seen = counts[i] && (!p.causal || (kColumn ? tokens[row] <= other : other <= tokens[row]));
        const float term = softmax_term(sums.at(i, j), from.top[statistic], scale_log2) * from.inverse[statistic];
        const float probability = seen ? term : 0.f;  // the term of a pair that is not seen may be NaN
#pragma unroll
        for (int w = 0; w < kSets; ++w) totals[w][i] += weight[w] * probability;
      }
    }
    sums.clear();
  });
#pragma unroll
  for (int w = 0; w < kSets; ++w) {
    if (w >= sets) break;
    add_across<T>(totals[w], [&](int row, float sum) {
      if (row < rows) parts[((b * query.heads + h) * p.sets + set0 + w) * p.count + i0 + row] = sum;
    });
  }
}

// out[b][i] = mean over heads of parts[b][h][i], i < state.
__global__ void __launch_bounds__(kThreads, 2)
    head_mean_kernel(const float* parts, int64_t heads, int64_t state, float* out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, b = blockIdx.y;
  if (i >= state) return;
  float total = 0.f;
  for (int64_t h = 0; h < heads; ++h) total += parts[(b * heads + h) * state + i];
  out[b * state + i] = total / static_cast<float>(heads);
}

struct Workspace {
  float *partial, *sums;
  RowSoftmax rows;
  FewQueries few;
};

const Rows& summed_rows(const TokenAttentionParams& p) { return p.column ? p.query : p.key; }
int64_t query_count(const TokenAttentionParams& p) { return p.column ? p.other_count : p.count; }

Workspace take(const TokenAttentionParams& p, Pieces& pieces) {
  Workspace w{};
  if (are_few_queries(p)) {
    w.few = take_few_queries(p, pieces);
  } else if (p.probs) {
    w.rows = take_row_softmax(pieces, p.batch, p.query.heads, query_count(p), p.keys);
    w.partial = pieces.take<float>(p.batch, p.query.heads, p.sets, p.count);
  } else {
    const int64_t heads = summed_rows(p).heads;
    w.partial = pieces.take<float>(p.batch, ceil_div(p.other_count, kChunk), p.sets, heads, p.width);
    w.sums = pieces.take<float>(p.batch, p.sets, heads, p.width);
  }
  return w;
}

cudaError_t launch_logits(const TokenAttentionParams& p, const Workspace& w, cudaStream_t stream) {
  const Rows &summed = summed_rows(p), &other = p.column ? p.key : p.query;
  const int64_t shift = p.column ? p.offset : 0, chunks = ceil_div(p.other_count, kChunk);
  const int64_t state = p.sets * summed.heads * p.width;
  FICOCO_TRY(with_type(summed.dtype, vectorised(summed, p.width), [&](auto type, auto vector) {
    using T = decltype(type);
    const dim3 grid(chunks, ceil_div(ceil_div(p.width, kPer<T>) * summed.heads, kWarp), p.batch);
    for (int64_t set = 0; set < p.sets; set += kSets) {
      weighted_sum_kernel<T, decltype(vector)::value>
          <<<grid, kThreads, 0, stream>>>(p, view<T>(summed), shift, set, w.partial);
      FICOCO_TRY(launched());
    }
    return cudaSuccess;
  }));
  add_chunks_kernel<<<dim3(ceil_div(state, kThreads), p.batch), kThreads, 0, stream>>>(w.partial, chunks, state,
                                                                                       w.sums);
  FICOCO_TRY(launched());
  return with_type(other.dtype, vectorised(other, p.width), [&](auto type, auto vector) {
    using T = decltype(type);
    token_dots_kernel<T, decltype(vector)::value><<<dim3(ceil_div(p.count, kWarps), p.batch), kThreads, 0, stream>>>(
        p, view<T>(other), p.offset - shift, summed.heads, w.sums);
    return launched();
  });
}

cudaError_t launch_pairs(const TokenAttentionParams& p, const RowSoftmax& softmax, float* parts, cudaStream_t stream) {
  const bool whole = vectorised(p.query, p.width) && vectorised(p.key, p.width);
  return with_type(p.query.dtype, whole, [&](auto type, auto vector) {
    using T = decltype(type);
    constexpr bool kVector = decltype(vector)::value;
    const auto kernel = p.column ? token_pairs_kernel<T, kVector, true> : token_pairs_kernel<T, kVector, false>;
    constexpr size_t kShared = sizeof(TileShared<T, kStages>);
    FICOCO_TRY(allow_shared(kernel, kShared));
    const dim3 grid(ceil_div(p.count, kTile), p.query.heads, p.batch);
    for (int64_t set = 0; set < p.sets; set += kSets) {
      kernel<<<grid, kTileThreads, kShared, stream>>>(p, view<T>(p.query), view<T>(p.key), softmax, set, parts);
      FICOCO_TRY(launched());
    }
    return cudaSuccess;
  });
}

cudaError_t launch_probabilities(const TokenAttentionParams& p, const Workspace& w, cudaStream_t stream) {
  RowSoftmaxParams rows{p.query, p.key, p.column ? p.others : p.tokens, p.batch, p.keys, p.width, query_count(p), 0,
                        p.scale, w.rows};
  rows.offset = p.offset;
  rows.causal = p.causal;
  rows.key_mask = p.key_mask;
  FICOCO_TRY(launch_row_softmax(rows, stream));
  FICOCO_TRY(launch_head_sums(p, w.rows, w.partial, stream));
  const int64_t state = p.sets * p.count;
  head_mean_kernel<<<dim3(ceil_div(state, kThreads), p.batch), kThreads, 0, stream>>>(w.partial, p.query.heads, state,
                                                                                      p.out);
  return launched();
}

}  // namespace

cudaError_t launch_head_sums(const TokenAttentionParams& p, const RowSoftmax& softmax, float* parts,
                             cudaStream_t stream) {
  if (softmax.of_all && !p.column) return cudaErrorInvalidValue;  // the kernels look up statistics of columns alone
  return are_wide_pairs(p) ? launch_wide_pairs(p, softmax, parts, stream) : launch_pairs(p, softmax, parts, stream);
}

size_t workspace_bytes(const TokenAttentionParams& p) {
  Pieces pieces(nullptr);
  take(p, pieces);
  return pieces.used();
}

cudaError_t launch_token_attention(const TokenAttentionParams& p, void* workspace, cudaStream_t stream) {
  const int64_t results = p.batch * p.sets * p.count;
  if (results == 0) return cudaSuccess;
  if (p.other_count == 0 || (p.width == 0 && !p.probs)) {  // an empty sum is 0
    return set_to_zero(p.out, results * sizeof(float), stream);
  }
  Pieces pieces(workspace);
  const Workspace w = take(p, pieces);
  if (are_few_queries(p)) return launch_few_queries(p, w.few, stream);
  return p.probs ? launch_probabilities(p, w, stream) : launch_logits(p, w, stream);
}

}  // namespace ficoco
