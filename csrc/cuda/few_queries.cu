// Attention sums by probabilities for few query rows. With one query row a 64 x 64 tile of products is mostly zeros,
// and only one block a head would walk over all keys.
//
// A block owns 128 keys of one head and takes the queries of all heads that share it. A key's row of n * 16 bytes is
// read by n lanes, several rows at once. The products are kept, with the maximum and the sum of each 128, so the keys
// are read once. A second kernel unites the maxima and sums and adds up the probabilities of the chosen tokens; there a
// thread owns a token and a quarter of the heads.
//
// 2 B R H T d FLOPs. Reads B T Hk d elements, writes and reads again 4 B R H T bytes: bound by memory. Shared memory:
// 20 KB (first kernel), 14 KB (second).
#include "cuda/few_queries.cuh"

#include <cfloat>

#include "cuda/row_softmax.cuh"

namespace ficoco {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kKeys = 128;             // of one block
constexpr int kBatch = 4;              // reads of a lane in flight at once
constexpr int64_t kRows = 8;           // queries that share a key head
constexpr int64_t kQueryRoom = 4096;   // numbers of those queries
constexpr int64_t kRoomOfRows = 1024;  // queries of all heads
constexpr int kTokens = 64;            // of one block of the second kernel
constexpr int kSets = 4;               // sets of weights at once
constexpr int kShares = kThreads / kTokens;

struct Part {  // as in row_softmax.cu
  float top, sum;
};

__device__ __forceinline__ Part unite(Part a, Part b) {
  const float top = fmaxf(a.top, b.top);
  const auto sum = [&](Part x) { return x.top == -INFINITY ? 0.f : x.sum * exp2_fast(x.top - top); };
  return {top, sum(a) + sum(b)};
}

struct Scale {
  float sign, log2;
};
__device__ __forceinline__ Scale scale_of(const TokenAttentionParams& p) {
  const float sign = p.scale < 0.f ? -1.f : 1.f;
  return {sign, p.scale == 0.f ? FLT_MIN : sign * p.scale * kLog2e};
}

__device__ __forceinline__ int64_t other(const TokenAttentionParams& p, int64_t b, int64_t r) {
  const int64_t token = p.others[b * p.other_count + r];
  assert(token >= p.offset && token < p.keys &&
         "ficoco::token_attention: an index is no token, or its query is not there");
  return token;
}

int64_t chunks_of_keys(const TokenAttentionParams& p) { return ceil_div(p.keys, kKeys); }

// `lanes`, a power of two, share a key's row.
template <class T, bool kVector>
__global__ void __launch_bounds__(kThreads, 2)
    query_dots_kernel(TokenAttentionParams p, View<T> query, View<T> key, int lanes, FewQueries out) {
  __shared__ __align__(16) float queries[kQueryRoom];
  __shared__ float dots[kRows][kKeys];
  __shared__ int tokens[kRows];
  const int64_t key_head = blockIdx.y, b = blockIdx.z;
  const int width = static_cast<int>(p.width), others = static_cast<int>(p.other_count);
  const int group = query.heads / key.heads, rows = others * group, keys = static_cast<int>(p.keys);
  const int j0 = static_cast<int>(blockIdx.x) * kKeys, count = min(kKeys, keys - j0);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (static_cast<int>(threadIdx.x) < rows) tokens[threadIdx.x] = static_cast<int>(other(p, b, threadIdx.x % others));
  __syncthreads();
  // Query row g others + r is of head g of the group and of others[r]; rounded up, so that four are read at once.
  const int stride = (width + kPer<T> - 1) / kPer<T> * kPer<T>;
  for (int i = threadIdx.x; i < rows * stride; i += kThreads) {
    const int row = i / stride, c = i % stride;
    const int64_t head = key_head * group + row / others;
    queries[i] = c < width ? to_float(query.row(b, head, tokens[row] - p.offset)[c]) : 0.f;
  }
  __syncthreads();
  const int at = lane % lanes * kPer<T>, step = lanes * kPer<T>, at_once = kWarp / lanes;
  const T* key_rows = key.row(b, key_head, j0);
  for (int first = warp * at_once * kBatch; first < count; first += kWarps * at_once * kBatch) {
    int mine[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) mine[i] = first + i * at_once + lane / lanes;
    for (int c0 = 0; c0 < width; c0 += step) {
      const int c = c0 + at;
      Pack<T> x[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        x[i] = {};
        if (mine[i] < count && c < width)
          x[i] = load_pack<T, kVector>(key_rows + mine[i] * key.stride_n + c, width - c);
      }
      for (int row = 0; row < rows; ++row) {
        float y[kPer<T>];
#pragma unroll
        for (int e = 0; e < kPer<T>; e += 4) {
          const float4 four = c < width ? *reinterpret_cast<const float4*>(queries + row * stride + c + e) : float4{};
          y[e] = four.x, y[e + 1] = four.y, y[e + 2] = four.z, y[e + 3] = four.w;
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          float dot = 0.f;
#pragma unroll
          for (int e = 0; e < kPer<T>; ++e) dot = fmaf(to_float(x[i].x[e]), y[e], dot);
          for (int offset = lanes / 2; offset > 0; offset /= 2) dot += __shfl_xor_sync(kAllLanes, dot, offset);
          if (lane % lanes == 0 && mine[i] < count) dots[row][mine[i]] = c0 == 0 ? dot : dots[row][mine[i]] + dot;
        }
      }
    }
  }
  __syncthreads();
  const Scale scale = scale_of(p);
  for (int row = warp; row < rows; row += kWarps) {
    const int64_t of = (b * query.heads + key_head * group + row / others) * others + row % others;
    float value[kKeys / kWarp], top = -INFINITY, sum = 0.f;
#pragma unroll
    for (int i = 0; i < kKeys / kWarp; ++i) {
      const int j = lane + i * kWarp;
      const bool seen = j < count && attends(p.causal, p.key_mask, p.keys, b, tokens[row], j0 + j);
      if (j < count) out.products[of * keys + j0 + j] = dots[row][j];
      value[i] = seen ? scale.sign * dots[row][j] : -INFINITY;
      top = fmaxf(top, value[i]);
    }
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, offset));
    top *= scale.log2;
    const float base = top == -INFINITY ? 0.f : top;
#pragma unroll
    for (int i = 0; i < kKeys / kWarp; ++i) sum += softmax_term(value[i], base, scale.log2);
    sum = warp_sum(sum);
    if (lane == 0) reinterpret_cast<Part*>(out.parts)[of * gridDim.x + blockIdx.x] = {top, sum};
  }
}

// A block has 64 tokens of an image, a thread one of them and a quarter of the heads.
__global__ void __launch_bounds__(kThreads, 2)
    add_probabilities_kernel(TokenAttentionParams p, FewQueries in, int chunks) {
  __shared__ float tops[kRoomOfRows], inverses[kRoomOfRows];
  __shared__ float sums[kSets][kShares][kTokens];
  const int heads = static_cast<int>(p.query.heads), others = static_cast<int>(p.other_count), rows = heads * others;
  const int64_t b = blockIdx.y, keys = p.keys, i = static_cast<int64_t>(blockIdx.x) * kTokens + threadIdx.x % kTokens;
  const int share = threadIdx.x / kTokens, lane = threadIdx.x % kWarp;
  const Scale scale = scale_of(p);
  const Part* parts = reinterpret_cast<const Part*>(in.parts) + b * rows * chunks;
  for (int row = threadIdx.x / kWarp; row < rows; row += kWarps) {
    Part part{-INFINITY, 0.f};
    for (int chunk = lane; chunk < chunks; chunk += kWarp) part = unite(part, parts[row * chunks + chunk]);
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      part = unite(part, {__shfl_xor_sync(kAllLanes, part.top, offset), __shfl_xor_sync(kAllLanes, part.sum, offset)});
    }
    tops[row] = part.top;
    inverses[row] = part.sum == 0.f ? 0.f : 1.f / part.sum;  // a query that may attend to no key
  }
  __syncthreads();
  const int64_t token = i < p.count ? p.tokens[b * p.count + i] : 0;
  assert(token >= 0 && token < keys && "ficoco::token_attention: an index is no token, or its query is not there");
  const bool is_key = i < p.count && (!p.key_mask || p.key_mask[b * keys + token]);
  const float* products = in.products + b * rows * keys + token;
  const int begin = heads * share / kShares, end = heads * (share + 1) / kShares;
  for (int64_t set0 = 0; set0 < p.sets; set0 += kSets) {
    const int sets = static_cast<int>(min(static_cast<int64_t>(kSets), p.sets - set0));
    float totals[kSets] = {};
    for (int r = 0; r < others; ++r) {
      if (!is_key || (p.causal && token > other(p, b, r))) continue;
      float sum = 0.f;
#pragma unroll 4
      for (int h = begin; h < end; ++h) {
        const int row = h * others + r;
        sum += softmax_term(scale.sign * products[row * keys], tops[row], scale.log2) * inverses[row];
      }
#pragma unroll
      for (int w = 0; w < kSets; ++w) {
        if (w < sets) totals[w] = fmaf(p.weights[(b * p.sets + set0 + w) * others + r], sum, totals[w]);
      }
    }
#pragma unroll
    for (int w = 0; w < kSets; ++w) sums[w][share][threadIdx.x % kTokens] = totals[w];
    __syncthreads();
    if (share < sets && i < p.count) {
      float total = 0.f;
#pragma unroll
      for (int s = 0; s < kShares; ++s) total += sums[share][s][threadIdx.x % kTokens];
      p.out[(b * p.sets + set0 + share) * p.count + i] = total / static_cast<float>(heads);
    }
    __syncthreads();
  }
}

}  // namespace

bool are_few_queries(const TokenAttentionParams& p) {
  const int64_t rows = p.other_count * (p.query.heads / p.key.heads), per = 16 / size_of(p.query.dtype);
  return p.probs && p.column && p.width > 0 && rows <= kRows && rows * round_up(p.width, per) <= kQueryRoom &&
         p.other_count * p.query.heads <= kRoomOfRows;
}

FewQueries take_few_queries(const TokenAttentionParams& p, Pieces& pieces) {
  FewQueries w{};
  w.products = pieces.take<float>(p.batch, p.query.heads, p.other_count, p.keys);
  w.parts = pieces.take<float>(p.batch, p.query.heads, p.other_count, chunks_of_keys(p), sizeof(Part) / sizeof(float));
  return w;
}

cudaError_t launch_few_queries(const TokenAttentionParams& p, const FewQueries& w, cudaStream_t stream) {
  static_assert(kSets <= kShares, "a share of the threads writes each set");
  FICOCO_TRY(with_type(p.query.dtype, vectorised(p.key, p.width), [&](auto type, auto vector) {
    using T = decltype(type);
    int lanes = 1;
    while (lanes < kWarp && lanes * kPer<T> < p.width) lanes *= 2;
    const dim3 grid(chunks_of_keys(p), p.key.heads, p.batch);
    query_dots_kernel<T, decltype(vector)::value>
        <<<grid, kThreads, 0, stream>>>(p, view<T>(p.query), view<T>(p.key), lanes, w);
    return launched();
  }));
  add_probabilities_kernel<<<dim3(ceil_div(p.count, kTokens), p.batch), kThreads, 0, stream>>>(
      p, w, static_cast<int>(chunks_of_keys(p)));
  return launched();
}

}  // namespace ficoco
