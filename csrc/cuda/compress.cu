// Merges every source into its targets.
//
// A block owns 32 survivors of an image and 512 bytes of each of their rows. A warp owns four of these survivors, a
// lane 16 bytes. One more block per image writes the source map.
//
// All threads of a block go through the image's edges and list those that end at its survivors, in order. For each edge
// the list holds the source, its share of the mean and the original tokens that it moves. Then each warp adds the
// sources of its survivors in that order, in fp32, with several reads in flight. So the work of a survivor that many
// sources chose is split among as many blocks as its row has slices, and no block searches the edges twice. There are
// no float atomics and no sort.
//
// Most survivors receive nothing. Their rows are read before the edges are searched and written while the list is made.
// The few that receive something read their row once more, from the cache. If an image has more edges than one list
// holds, the sums wait in shared memory while the next edges are listed.
//
// Tokens are read once and written once, (N + M) C elements, 16 bytes at a time: bound by memory. 2 r k C FLOPs an
// image. r = 0 is a plain copy. Shared memory: 3 KB; with more than 256 edges 56 KB (half), 40 KB (float).
#include "cuda/utils.cuh"

namespace ficoco {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kRows = 4;  // survivors of a warp
constexpr int kBlockRows = kRows * kWarps;
// kOnce: all edges of an image fit into one list. Then a block is small, and many of them hide each other's waits;
// otherwise a popular survivor has many sources, and several reads in flight hide the waits.
template <bool kOnce>
constexpr int kEdges = kOnce ? 1 : 5;  // that a thread examines before they are added up
template <bool kOnce>
constexpr int kListed = kEdges<kOnce> * kThreads;
template <bool kVector, bool kOnce>
constexpr int kBatch = !kVector ? 2
                       : kOnce  ? 4
                                : 8;  // packs of a lane in flight at once
constexpr int kRowBit = 20;
static_assert(kMaxTokens <= 1 << kRowBit && kBlockRows <= 32, "a row and a source share 32 bits");

// Edges that end at the block, in order.
template <bool kOnce>
struct EdgeList {
  uint32_t ends[kListed<kOnce>];  // source, and the survivor's row in the block from bit kRowBit on
  float share[kListed<kOnce>];    // of the source in the survivor's mean
  float moved[kListed<kOnce>];    // original tokens
};

// The weight of a survivor: the divisor of its mean, and the original tokens it will stand for.
struct Mass {
  float divisor, size;
};

__device__ void write_source_map(const CompressParams& p, int64_t b) {
  int64_t* map = p.source_map + b * p.count;
  for (int64_t i = threadIdx.x; i < p.count; i += kThreads) map[i] = -1;  // a token that neither list names
  __syncthreads();
  for (int64_t j = threadIdx.x; j < p.kept_count; j += kThreads) {
    const int64_t kept = p.kept[b * p.kept_count + j];
    assert(kept >= 0 && kept < p.count && "ficoco::compress: a kept index is no token");
    map[kept] = j;
  }
  for (int64_t i = threadIdx.x; i < p.r; i += kThreads) {
    const int64_t edge = (b * p.r + i) * p.k, source = p.sources[b * p.r + i];
    assert(source >= 0 && source < p.count && "ficoco::compress: a source is no token");
    int64_t largest = 0;
    for (int64_t t = 1; t < p.k; ++t) largest = p.weights[edge + t] > p.weights[edge + largest] ? t : largest;
    const int64_t target = p.k ? p.targets[edge + largest] : -1;
    assert(target < p.kept_count && "ficoco::compress: a target is no survivor");
    map[source] = target;
  }
}

// The row of the block at which each of this thread's edges from `base` on ends, if it ends there. A warp has kEdges
// runs of 32.
template <int kEdges>
__device__ __forceinline__ void read_ends(const CompressParams& p, int64_t b, int64_t base, int64_t j0, int rows,
                                          int (&row)[kEdges]) {
  const int64_t edges = p.r * p.k, own = base + threadIdx.x / kWarp * (kEdges * kWarp) + threadIdx.x % kWarp;
  int64_t target[kEdges];
#pragma unroll
  for (int e = 0; e < kEdges; ++e) {
    target[e] = own + e * kWarp < edges ? p.targets[b * edges + own + e * kWarp] : -1;
  }
#pragma unroll
  for (int e = 0; e < kEdges; ++e) {
    const int64_t at = target[e] - j0;
    row[e] = at >= 0 && at < rows ? static_cast<int>(at) : -1;
  }
}

// Lists this thread's edges, given how many other warps found before, and marks the rows where they end.
template <int kEdges, bool kOnce>
__device__ __forceinline__ void list_edges(const CompressParams& p, int64_t b, int64_t base, const int (&row)[kEdges],
                                           int before, EdgeList<kOnce>& list, uint32_t& receivers) {
  const int lane = threadIdx.x % kWarp;
  const int64_t edges = p.r * p.k, first = base / p.k;
  const int64_t* sources = p.sources + b * p.r + first;
  const float *weights = p.weights + b * edges + base, *sizes = p.size ? p.size + b * p.count : nullptr;
  const uint32_t k = static_cast<uint32_t>(p.k),
                 of_first = static_cast<uint32_t>(base - first * p.k);  // 32 bits divide
  const uint32_t own = threadIdx.x / kWarp * (kEdges * kWarp) + lane;
#pragma unroll
  for (int e = 0; e < kEdges; ++e) {
    const uint32_t hits = __ballot_sync(kAllLanes, row[e] >= 0);
    if (row[e] >= 0) {
      const int at = before + __popc(hits & ((1u << lane) - 1));
      const uint32_t edge = own + e * kWarp;
      const int64_t source = sources[(of_first + edge) / k];
      assert(source >= 0 && source < p.count && "ficoco::compress: a source is no token");
      const float weight = weights[edge], moved = sizes ? weight * sizes[source] : weight;
      list.ends[at] = static_cast<uint32_t>(source) | static_cast<uint32_t>(row[e]) << kRowBit;
      list.share[at] = p.size_weighted ? moved : weight;
      list.moved[at] = moved;
      atomicOr(&receivers, 1u << row[e]);
    }
    before += __popc(hits);
  }
}

// 16 bytes as they lie in memory, or zeros if there is nothing. As one value: where a Pack of halves is either, the
// compiler splits it into halves.
template <class T, bool kVector>
__device__ __forceinline__ uint4 load_bits(const T* from, int left, bool exists) {
  uint4 bits = make_uint4(0, 0, 0, 0);
  if constexpr (kVector) {
    if (exists) bits = __ldg(reinterpret_cast<const uint4*>(from));
  } else if (exists) {
    const Pack<T> pack = load_pack<T, false>(from, left);
    bits = *reinterpret_cast<const uint4*>(&pack);
  }
  return bits;
}

template <class T, bool kVector>
__device__ __forceinline__ void store_bits(T* to, const uint4& bits, int left) {
  if constexpr (kVector) {
    __stwb(reinterpret_cast<uint4*>(to), bits);
  } else {
    store_pack<T, false>(to, *reinterpret_cast<const Pack<T>*>(&bits), left);
  }
}

template <class T>
__device__ __forceinline__ Pack<T> as_pack(const uint4& bits) {
  Pack<T> pack;
  *reinterpret_cast<uint4*>(&pack) = bits;
  return pack;
}

// Sums of one survivor, 16 bytes a lane, and its weight.
template <class T>
struct Sums {
  float of[kPer<T>];
  Mass mass;

  // What the survivor is before it receives anything.
  __device__ __forceinline__ void begin(const uint4& bits, float size, bool weighted) {
    const Pack<T> x = as_pack<T>(bits);
    mass = {weighted ? size : 1.f, size};
#pragma unroll
    for (int e = 0; e < kPer<T>; ++e) of[e] = mass.divisor * to_float(x.x[e]);
  }

  __device__ __forceinline__ uint4 mean() const {
    Pack<T> pack;
#pragma unroll
    for (int e = 0; e < kPer<T>; ++e) pack.x[e] = from_float<T>(of[e] / mass.divisor);
    return *reinterpret_cast<const uint4*>(&pack);
  }

  // Adds what is listed for the survivor, in order. All lanes call it.
  template <bool kVector, bool kOnce>
  __device__ __forceinline__ void add(const EdgeList<kOnce>& list, int listed, int row, const T* images, int64_t stride,
                                      int left) {
#pragma unroll 1
    for (int at0 = 0; at0 < listed; at0 += kWarp) {
      const int own = at0 + threadIdx.x % kWarp;
      uint32_t hits = __ballot_sync(kAllLanes, own < listed && static_cast<int>(list.ends[own] >> kRowBit) == row);
#pragma unroll 1
      while (hits) {
        uint32_t same_hits = hits;
        uint4 bits[kBatch<kVector, kOnce>];
#pragma unroll
        for (int i = 0; i < kBatch<kVector, kOnce>; ++i) {
          const int at = max(at0 + __ffs(static_cast<int>(hits)) - 1, 0);
          const uint32_t source = list.ends[at] & ((1u << kRowBit) - 1);
          bits[i] = load_bits<T, kVector>(images + source * stride, left, hits && left > 0);
          hits &= hits - 1;
        }
#pragma unroll
        for (int i = 0; i < kBatch<kVector, kOnce>; ++i) {  // without a branch: adding -0 changes no value, not even -0
          const int at = max(at0 + __ffs(static_cast<int>(same_hits)) - 1, 0);
          const float share = same_hits ? list.share[at] : -0.f, moved = same_hits ? list.moved[at] : -0.f;
          same_hits &= same_hits - 1;
          mass.divisor += share;
          mass.size += moved;
          const Pack<T> x = as_pack<T>(bits[i]);
#pragma unroll
          for (int e = 0; e < kPer<T>; ++e) of[e] = fmaf(share, to_float(x.x[e]), of[e]);
        }
      }
    }
  }
};

// Shared memory for a survivor's sums while the next edges are listed. A lane reads only what it wrote.
template <class T>
struct Waiting {
  float4 sums[kBlockRows][kPer<T> / 4][kWarp];
  Mass masses[kBlockRows][kWarp];

  __device__ __forceinline__ void put(int row, const Sums<T>& from) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int e = 0; e < kPer<T>; e += 4) {
      sums[row][e / 4][lane] = make_float4(from.of[e], from.of[e + 1], from.of[e + 2], from.of[e + 3]);
    }
    masses[row][lane] = from.mass;
  }
  __device__ __forceinline__ Sums<T> get(int row) const {
    const int lane = threadIdx.x % kWarp;
    Sums<T> to;
#pragma unroll
    for (int e = 0; e < kPer<T>; e += 4) {
      const float4 four = sums[row][e / 4][lane];
      to.of[e] = four.x;
      to.of[e + 1] = four.y;
      to.of[e + 2] = four.z;
      to.of[e + 3] = four.w;
    }
    to.mass = masses[row][lane];
    return to;
  }
};

template <bool kOnce>
struct Listed {
  EdgeList<kOnce> list;
  int found[kWarps];   // edges, by each warp
  uint32_t receivers;  // bit j: row j of the block has received something
};
template <class T, bool kOnce>
struct Shared : Listed<true> {};
template <class T>
struct Shared<T, false> : Listed<false> {
  Waiting<T> waiting;
};

template <class T, bool kVector, bool kOnce>
__global__ void __launch_bounds__(kThreads, kOnce ? 3 : 2)
    compress_kernel(CompressParams p, View<T> tokens, int slices) {
  const int64_t b = blockIdx.y;
  if (blockIdx.x == 0) {
    write_source_map(p, b);
    return;
  }
  extern __shared__ __align__(16) unsigned char storage[];
  auto& shared = *reinterpret_cast<Shared<T, kOnce>*>(storage);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int slice = static_cast<int>(blockIdx.x - 1) % slices;
  const int64_t j0 = static_cast<int64_t>(static_cast<int>(blockIdx.x - 1) / slices) * kBlockRows;
  const int rows = static_cast<int>(min(static_cast<int64_t>(kBlockRows), p.kept_count - j0));
  const int64_t c = static_cast<int64_t>(slice * kWarp + lane) * kPer<T>;
  const int left = static_cast<int>(max(min(p.channels - c, int64_t{kPer<T>}), int64_t{0}));  // of the lane's channels
  const T* images = tokens.row(b, 0, 0) + c;
  // Addresses are made where they are used: kept, they would cost registers that the rows in flight need.
  const auto survivor = [&](int row) { return b * p.kept_count + j0 + row; };
  const auto size_of = [&](int64_t token) { return p.size ? p.size[b * p.count + token] : 1.f; };
  const auto write = [&](int row, const uint4& bits, float size) {
    T* to = static_cast<T*>(p.out) + survivor(row) * p.channels + c;
    if (left > 0) store_bits<T, kVector>(to, bits, left);
    if (slice == 0 && lane == 0) p.out_size[survivor(row)] = size;
  };
  const auto row_of = [&](int i) { return warp + i * kWarps; };  // neighbours have different warps
  int kept[kRows];
  bool right = true;
  uint4 bits[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int64_t token = row_of(i) < rows ? p.kept[survivor(row_of(i))] : 0;
    right = right && token >= 0 && token < p.count;
    kept[i] = static_cast<int>(token);
  }
  (void)right;
  assert(right && "ficoco::compress: a kept index is no token");
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    bits[i] = load_bits<T, kVector>(images + kept[i] * tokens.stride_n, left, row_of(i) < rows && left > 0);
  }
  if (threadIdx.x == 0) shared.receivers = 0;
  uint32_t waits = 0;  // bit i: sums of survivor i of the warp are in shared memory
  const int64_t edges = p.r * p.k;
  for (int64_t base = 0; base == 0 || base < edges; base += kListed<kOnce>) {
    int row[kEdges<kOnce>], own = 0;
    read_ends(p, b, base, j0, rows, row);
#pragma unroll
    for (int e = 0; e < kEdges<kOnce>; ++e) own += __popc(__ballot_sync(kAllLanes, row[e] >= 0));
    if (lane == 0) shared.found[warp] = own;
    __syncthreads();
    int before = 0, listed = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      before += w < warp ? shared.found[w] : 0;
      listed += shared.found[w];
    }
    if (base == 0) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        if (row_of(i) >= rows) continue;
        write(row_of(i), bits[i], p.size ? size_of(p.kept[survivor(row_of(i))]) : 1.f);  // until it receives something
      }
    }
    if (own) list_edges(p, b, base, row, before, shared.list, shared.receivers);
    if (listed == 0 && kOnce) return;
    __syncthreads();
    if (listed == 0) continue;
    const uint32_t receivers = shared.receivers;
#pragma unroll 1
    for (int i = 0; i < kRows; ++i) {
      const int at = row_of(i);
      if (!(receivers >> at & 1u)) continue;
      Sums<T> sums;
      const int64_t token = p.kept[survivor(at)];
      if constexpr (!kOnce) {
        if (waits >> i & 1u) sums = shared.waiting.get(at);
      }
      if (!(waits >> i & 1u)) {
        const uint4 own_bits = load_bits<T, kVector>(images + token * tokens.stride_n, left, left > 0);
        sums.begin(own_bits, size_of(token), p.size_weighted);
      }
      sums.template add<kVector>(shared.list, listed, at, images, tokens.stride_n, left);
      if constexpr (kOnce) {
        write(at, sums.mean(), sums.mass.size);
      } else {
        waits |= 1u << i;
        shared.waiting.put(at, sums);
      }
    }
  }
  if constexpr (!kOnce) {
#pragma unroll 1
    for (int i = 0; i < kRows; ++i) {
      if (!(waits >> i & 1u)) continue;
      const Sums<T> sums = shared.waiting.get(row_of(i));
      write(row_of(i), sums.mean(), sums.mass.size);
    }
  }
}

template <class T, bool kVector, bool kOnce>
cudaError_t launch(const CompressParams& p, cudaStream_t stream) {
  const auto kernel = compress_kernel<T, kVector, kOnce>;
  // Without channels the sizes are still written.
  const int64_t slices = p.channels ? ceil_div(p.channels, kWarp * kPer<T>) : 1;
  const dim3 grid(ceil_div(p.kept_count, kBlockRows) * slices + 1, p.batch);
  constexpr size_t bytes = sizeof(Shared<T, kOnce>);
  FICOCO_TRY(allow_shared(kernel, bytes));
  kernel<<<grid, kThreads, bytes, stream>>>(p, view<T>(p.tokens), static_cast<int>(slices));
  return launched();
}

}  // namespace

cudaError_t launch_compress(const CompressParams& p, cudaStream_t stream) {
  if (p.batch == 0) return cudaSuccess;
  const bool aligned = reinterpret_cast<uintptr_t>(p.out) % 16 == 0;
  return with_type(p.tokens.dtype, aligned && vectorised(p.tokens, p.channels), [&](auto type, auto vector) {
    using T = decltype(type);
    constexpr bool kVector = decltype(vector)::value;
    return p.r * p.k <= kListed<true> ? launch<T, kVector, true>(p, stream) : launch<T, kVector, false>(p, stream);
  });
}

}  // namespace ficoco
