// Weighted sums of probabilities between tokens and others, in half precision.
//
// A block owns 128 tokens of one head and walks over the others, 64 a turn. A warp keeps 16 of the tokens in registers,
// with all their channels. Only the others pass through shared memory, three turns at once. The rows of the products
// are the tokens, be they queries or keys; the columns are the others.
//
// Before the walk all threads read the list of others once. A turn whose pairs causality removes is skipped; in a turn
// whose pairs it all keeps, no single pair is tested. Both tests are one comparison of integers: a token with the bound
// of an other. The bound also stands for masks and for others that do not exist.
//
// 2 H N R d FLOPs and H N R exponentials, half of both if causal. Others' rows are read once for every 128 tokens.
// Bound by tensor cores and exponentials alike. Shared memory 55 KB (d = 128), 31 KB (d <= 64).
#include <climits>

#include "cuda/wide_pairs.cuh"

namespace ficoco {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kTokens = 16 * kWarps;  // of a block
constexpr int kOthers = 64;           // of a turn
constexpr int kStages = 3;
constexpr int kListReads = 4;   // of a thread, in flight at once
constexpr int kBitWords = 256;  // words with a bit a turn: what causality leaves of its pairs

// Rows of one turn. 16 bytes of padding a row keep the banks apart.
template <class T, int kWidth>
struct alignas(16) OtherRows {
  static constexpr int kStride = kWidth + kPer<T>;
  T x[kOthers * kStride];
};

// What is known of an other before its products: the top of its softmax if it is the query, its weights (times its
// inverse sum), and the tokens that it goes with: with `column` those up to the bound, else those from it on.
template <int kSets>
struct alignas(8) Other {
  float top;
  int bound;
  float weight[kSets];
};

template <class T, int kWidth, int kSets>
struct Shared {
  static_assert(kTokens == 2 * kOthers);
  OtherRows<T, kWidth> rows[kStages];  // the tokens' rows before the first turn: two turns' worth
  Other<kSets> others[2][kOthers];
  int tokens[kTokens];
  uint32_t some[kBitWords], mixed[kBitWords];  // bits of turns: a pair may count, a pair may not
};

// Starts to copy row(0..count) of 16 kPacks bytes each, zeros beyond `width` and where there is no row.
template <int kRows, int kPacks, class T, class Row>
__device__ __forceinline__ void copy_rows(T* to, int stride, int width, int count, const Row& row) {
  constexpr int kAtOnce = kThreads / kPacks;
  const int at = threadIdx.x % kPacks * kPer<T>;
#pragma unroll
  for (int i = 0; i < kRows / kAtOnce; ++i) {
    const int r = threadIdx.x / kPacks + i * kAtOnce;
    const bool exists = r < count && at < width;
    copy_async<16>(to + r * stride + at, row(i, r) + (exists ? at : 0), exists);
  }
}

template <class T, int kWidth, int kSets, bool kColumn>
__global__ void __launch_bounds__(kThreads, 2)
    wide_pairs_kernel(const __grid_constant__ TokenAttentionParams p, View<T> query, View<T> key, RowSoftmax softmax,
                      int set0, float* parts) {
  extern __shared__ __align__(128) unsigned char storage[];
  auto& shared = *reinterpret_cast<Shared<T, kWidth, kSets>*>(storage);
  constexpr int kStride = OtherRows<T, kWidth>::kStride, kPacks = kWidth / kPer<T>, kAtOnce = kThreads / kPacks;
  constexpr int kOwnRows = kOthers / kAtOnce;  // of a turn; a thread copies 16 bytes of each
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  // Blocks with the most to do come first: those of early keys, or of late queries.
  const int tile = static_cast<int>(kColumn ? blockIdx.y : gridDim.y - 1 - blockIdx.y);
  const int64_t i0 = static_cast<int64_t>(tile) * kTokens, h = blockIdx.x, b = blockIdx.z;
  const int rows = static_cast<int>(min(static_cast<int64_t>(kTokens), p.count - i0));
  const int count = static_cast<int>(p.other_count), turns = (count + kOthers - 1) / kOthers;
  const int offset = static_cast<int>(p.offset), keys = static_cast<int>(p.keys), width = static_cast<int>(p.width);
  const T* queries = query.row(b, h, 0);
  const T* head_keys = key.row(b, h / (query.heads / key.heads), 0);
  const bool* mask = p.key_mask ? p.key_mask + b * p.keys : nullptr;
  const int64_t* list = p.others + b * p.other_count;
  const auto token_row = [&](int token) {
    return kColumn ? head_keys + token * key.stride_n : queries + (token - offset) * query.stride_n;
  };
  const auto other_row = [&](int token) {
    return kColumn ? queries + (token - offset) * query.stride_n : head_keys + token * key.stride_n;
  };
  const auto bound_of = [&](int other) {
    if (!kColumn && mask && !mask[other]) return INT_MAX;
    return p.causal ? other : kColumn ? INT_MAX : -1;
  };

  if (threadIdx.x < kTokens) {
    const int64_t token = p.tokens[b * p.count + i0 + min(static_cast<int>(threadIdx.x), rows - 1)];
    assert(token >= (kColumn ? 0 : offset) && token < keys &&
           "ficoco::token_attention: an index is no token, or its query is not there");
    shared.tokens[threadIdx.x] = static_cast<int>(token);
  }
  for (int i = threadIdx.x; i < kBitWords; i += kThreads) shared.some[i] = shared.mixed[i] = 0;
  __syncthreads();
  copy_rows<kTokens, kPacks>(shared.rows[0].x, kStride, width, rows,
                             [&](int, int r) { return token_row(shared.tokens[r]); });
  commit_copies();
  int first = INT_MAX, last = 0;  // of the block's tokens
#pragma unroll
  for (int i = 0; i < kTokens; i += kWarp) {
    first = min(first, shared.tokens[i + lane]);
    last = max(last, shared.tokens[i + lane]);
  }
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    first = min(first, __shfl_xor_sync(kAllLanes, first, lanes));
    last = max(last, __shfl_xor_sync(kAllLanes, last, lanes));
  }
  const bool known = turns <= kBitWords * 32;
  for (int at0 = 0; at0 < turns * kOthers; at0 += kListReads * kThreads) {
    int64_t other[kListReads];
#pragma unroll
    for (int n = 0; n < kListReads; ++n) {
      const int i = at0 + n * kThreads + static_cast<int>(threadIdx.x);
      other[n] = i < count ? list[i] : -1;
    }
#pragma unroll
    for (int n = 0; n < kListReads; ++n) {
      const int i = at0 + n * kThreads + static_cast<int>(threadIdx.x), turn = i / kOthers;
      int bound = kColumn ? -1 : INT_MAX;  // no such other: pairs with no token
      if (i < count) {
        assert(other[n] >= (kColumn ? offset : 0) && other[n] < keys &&
               "ficoco::token_attention: an index is no token, or its query is not there");
        bound = bound_of(static_cast<int>(other[n]));
      }
      const bool some = __any_sync(kAllLanes, kColumn ? first <= bound : bound <= last);  // a warp has half a turn
      const bool mixed = __any_sync(kAllLanes, kColumn ? bound < last : first < bound);
      if (lane != 0 || !known || turn >= turns) continue;
      if (some) atomicOr(&shared.some[turn / 32], 1u << turn % 32);
      if (mixed) atomicOr(&shared.mixed[turn / 32], 1u << turn % 32);
    }
  }
  wait_for_copies<0>();
  __syncthreads();
  uint32_t own[kWidth / 16][4];
#pragma unroll
  for (int k = 0; k < kWidth / 16; ++k) {
    load_matrices(own[k], shared.rows[0].x + (warp * 16 + lane % 16) * kStride + lane / 16 * 8 + k * 16);
  }
  __syncthreads();

  const auto from = [&](int turn) {  // the first turn from `turn` on that is not skipped
    while (known && turn < turns) {
      const uint32_t bits = shared.some[turn / 32] >> turn % 32;
      if (bits) return turn + __ffs(static_cast<int>(bits)) - 1;
      turn = (turn / 32 + 1) * 32;
    }
    return min(turn, turns);
  };
  int of_rows[kOwnRows];  // others whose rows are copied next
  const auto ask_rows = [&](int turn) {
#pragma unroll
    for (int i = 0; i < kOwnRows; ++i) {
      const int at = turn * kOthers + static_cast<int>(threadIdx.x) / kPacks + i * kAtOnce;
      of_rows[i] = at < count ? static_cast<int>(list[at]) : offset;
    }
  };
  const auto copy = [&](int turn, int stage) {
    if (turn < turns) {
      copy_rows<kOthers, kPacks>(shared.rows[stage].x, kStride, width, count - turn * kOthers,
                                 [&](int i, int) { return other_row(of_rows[i]); });
    }
    commit_copies();
  };
  Other<kSets> next{};  // of thread j: other j of the next turn
  const int sets = static_cast<int>(p.sets) - set0;
  const auto ask_other = [&](int turn) {
    const int at = turn * kOthers + static_cast<int>(threadIdx.x);
    next = {0.f, kColumn ? -1 : INT_MAX, {}};
    if (threadIdx.x >= kOthers || at >= count) return;
    const int64_t statistic = softmax.at(b * query.heads + h, p.other_count, keys, at, list[at]);
    if (kColumn) next.top = softmax.top[statistic];
    const float inverse = kColumn ? softmax.inverse[statistic] : 1.f;
    next.bound = bound_of(static_cast<int>(list[at]));
#pragma unroll
    for (int w = 0; w < kSets; ++w) {
      if (w < sets) next.weight[w] = inverse * p.weights[(b * p.sets + set0 + w) * p.other_count + at];
    }
  };

  const int row = warp * 16 + lane / 4;  // this row and row + 8
  const int token[2] = {shared.tokens[row], shared.tokens[row + 8]};
  const int64_t statistic = (b * query.heads + h) * p.count + i0 + row;  // of rows
  float tops[2] = {};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (!kColumn && row + 8 * i < rows) tops[i] = softmax.top[statistic + 8 * i];
  }
  const float scale_log2 = p.scale * kLog2e;
  float totals[kSets][2] = {};
  int turn = from(0), turn1 = from(turn + 1), turn2 = from(turn1 + 1);  // this one and the next two
  ask_rows(turn);
  copy(turn, 0);
  ask_rows(turn1);
  copy(turn1, 1);
  ask_rows(turn2);
  ask_other(turn);
  if (threadIdx.x < kOthers) shared.others[0][threadIdx.x] = next;
  ask_other(turn1);
  for (int step = 0; turn < turns; ++step) {
    wait_for_copies<1>();
    __syncthreads();  // everyone's copies are there, and no thread reads what the next ones overwrite
    if (threadIdx.x < kOthers) shared.others[(step + 1) % 2][threadIdx.x] = next;
    copy(turn2, (step + 2) % kStages);
    const int turn3 = from(turn2 + 1);
    ask_rows(turn3);
    ask_other(turn2);
    float sums[kOthers / 8][4] = {};
    const T* others = shared.rows[step % kStages].x + (lane % 8 + lane / 16 * 8) * kStride + lane / 8 % 2 * 8;
#pragma unroll
    for (int k = 0; k < kWidth / 16; ++k) {
#pragma unroll
      for (int j = 0; j < kOthers / 16; ++j) {  // 16 columns
        uint32_t of_others[4];
        load_matrices(of_others, others + 16 * j * kStride + k * 16);
        multiply_add<T>(sums[2 * j], own[k], of_others[0], of_others[1]);
        multiply_add<T>(sums[2 * j + 1], own[k], of_others[2], of_others[3]);
      }
    }
    const bool mixed = !known || (shared.mixed[turn / 32] >> turn % 32 & 1u);
    const auto add = [&](const auto& counts) {
#pragma unroll
      for (int j = 0; j < kOthers / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const Other<kSets> other = shared.others[step % 2][8 * j + lane % 4 * 2 + e];
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const float term = softmax_term(sums[j][2 * i + e], kColumn ? other.top : tops[i], scale_log2);
            const bool seen = counts(token[i], other.bound);
#pragma unroll
            for (int w = 0; w < kSets; ++w) {
              totals[w][i] = seen ? fmaf(other.weight[w], term, totals[w][i]) : totals[w][i];
            }
          }
        }
      }
    };
    if (mixed) {
      add([](int mine, int bound) { return kColumn ? mine <= bound : bound <= mine; });
    } else {
      add([](int, int) { return true; });
    }
    turn = turn1;
    turn1 = turn2;
    turn2 = turn3;
  }
  wait_for_copies<0>();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int w = 0; w < kSets; ++w) {
      float total = totals[w][i];
      total += __shfl_xor_sync(kAllLanes, total, 1);
      total += __shfl_xor_sync(kAllLanes, total, 2);
      if (lane % 4 != 0 || row + 8 * i >= rows || w >= sets) continue;
      if (!kColumn) total *= softmax.inverse[statistic + 8 * i];
      if (kColumn && mask && !mask[token[i]]) total = 0.f;  // a masked key gets 0, even if its sum is NaN
      parts[((b * query.heads + h) * p.sets + set0 + w) * p.count + i0 + row + 8 * i] = total;
    }
  }
}

template <class T, int kWidth, int kSets>
cudaError_t launch(const TokenAttentionParams& p, const RowSoftmax& softmax, float* parts, cudaStream_t stream) {
  const auto kernel = p.column ? wide_pairs_kernel<T, kWidth, kSets, true> : wide_pairs_kernel<T, kWidth, kSets, false>;
  constexpr size_t kShared = sizeof(Shared<T, kWidth, kSets>);
  FICOCO_TRY(allow_shared(kernel, kShared));
  const dim3 grid(p.query.heads, ceil_div(p.count, kTokens), p.batch);
  for (int64_t set = 0; set < p.sets; set += kSets) {
    kernel<<<grid, kThreads, kShared, stream>>>(p, view<T>(p.query), view<T>(p.key), softmax, static_cast<int>(set),
                                                parts);
    FICOCO_TRY(launched());
  }
  return cudaSuccess;
}

template <class T>
cudaError_t launch(const TokenAttentionParams& p, const RowSoftmax& softmax, float* parts, cudaStream_t stream) {
  if (p.width <= 64) {
    return p.sets == 1 ? launch<T, 64, 1>(p, softmax, parts, stream) : launch<T, 64, 4>(p, softmax, parts, stream);
  }
  return p.sets == 1 ? launch<T, 128, 1>(p, softmax, parts, stream) : launch<T, 128, 4>(p, softmax, parts, stream);
}

}  // namespace

bool are_wide_pairs(const TokenAttentionParams& p) {
  return p.probs && p.query.dtype != Dtype::kFloat && p.width <= 128 && p.other_count <= INT_MAX - kOthers &&
         vectorised(p.query, p.width) && vectorised(p.key, p.width);
}

cudaError_t launch_wide_pairs(const TokenAttentionParams& p, const RowSoftmax& softmax, float* parts,
                              cudaStream_t stream) {
  if (p.query.dtype == Dtype::kHalf) return launch<__half>(p, softmax, parts, stream);
  return launch<__nv_bfloat16>(p, softmax, parts, stream);
}

}  // namespace ficoco
