// Cosines of the features of tokens with other vectors, or with each other.
//
// A block owns 64 tokens x 64 things, on tensor cores for halves. It adds up the squares of its rows on the way, so
// nothing is normalized in memory. 2 B N R D FLOPs; features are read once for every 64 things and the other way round,
// B N R floats are written. With each other half of the blocks are enough: they write their cosines both ways. Shared
// memory 74 KB (float), 37 KB (halves).
#include "cuda/cosines.cuh"

#include "cuda/launch.h"
#include "cuda/tile.cuh"
#include "cuda/utils.cuh"

namespace ficoco {
namespace {

constexpr float kTiny = 1e-12f;

// With kSelf the things are the tokens, and a cosine above kAlike is 1.
template <class T, bool kVector, bool kSelf>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks<T>)
    cosines_kernel(CosinesParams p, View<T> features, View<T> things) {
  extern __shared__ __align__(128) unsigned char storage[];
  auto& shared = *reinterpret_cast<TileShared<T, kStages>*>(storage);
  __shared__ float inverse[2][kTile];
  using Sums = TileSums<T>;
  if (kSelf && blockIdx.x < blockIdx.y) return;  // the other half
  const int64_t i0 = static_cast<int64_t>(blockIdx.y) * kTile, j0 = static_cast<int64_t>(blockIdx.x) * kTile;
  const int64_t b = blockIdx.z, n = p.tokens, r = p.thing_count;
  const int rows = static_cast<int>(min(static_cast<int64_t>(kTile), n - i0));
  const int columns = static_cast<int>(min(static_cast<int64_t>(kTile), r - j0));
  const int side = threadIdx.x / (2 * kTile), own = threadIdx.x / 2 % kTile, half = threadIdx.x % 2;  // two a row
  Sums sums;
  float squares = 0.f;
  const auto load = [&](int, int chunk, TileStep<T>& to) {
    const int64_t c = static_cast<int64_t>(chunk) * kTile;
    to.a.template load<kVector>([&](int i) { return features.row(b, 0, i0 + i); }, rows, c, p.width);
    to.b.template load<kVector>([&](int j) { return things.row(b, 0, j0 + j); }, columns, c, p.width);
  };
  walk(shared, 1, chunks_of(p.width), load, [&](int, int, const TileStep<T>& from) {
    sums.add(from.a, from.b);
    const T* row = (side ? from.b : from.a).x + own * TileRows<T>::kStride + half * kPer<T>;
#pragma unroll
    for (int c = 0; c < kTile; c += 2 * kPer<T>) {
      const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(row + c);
#pragma unroll
      for (int e = 0; e < kPer<T>; ++e) squares = fmaf(to_float(pack.x[e]), to_float(pack.x[e]), squares);
    }
  });
  squares += __shfl_xor_sync(kAllLanes, squares, 1);
  if (half == 0) inverse[side][own] = 1.f / fmaxf(sqrtf(squares), kTiny);
  __syncthreads();
  float* out = p.cosines + b * n * r;
#pragma unroll
  for (int i = 0; i < Sums::kRows; ++i) {
#pragma unroll
    for (int j = 0; j < Sums::kColumns; ++j) {
      const int row = Sums::row(i), column = Sums::column(j);
      if (row >= rows || column >= columns) continue;
      // The product of the lengths first: it is the same both ways round, so copies have equal cosines in all tiles.
      float value = sums.at(i, j) * (inverse[0][row] * inverse[1][column]);
      if (kSelf && value > kAlike) value = 1.f;
      out[(i0 + row) * r + j0 + column] = value;
      if (kSelf && i0 != j0) out[(j0 + column) * r + i0 + row] = value;
    }
  }
}

template <class T, bool kVector, bool kSelf>
cudaError_t launch_typed_cosines(const CosinesParams& p, cudaStream_t stream) {
  const auto tiles = [](int64_t n) { return static_cast<unsigned>(ceil_div(n, kTile)); };
  const auto kernel = cosines_kernel<T, kVector, kSelf>;
  constexpr size_t kShared = sizeof(TileShared<T, kStages>);
  FICOCO_TRY(allow_shared(kernel, kShared));
  const dim3 grid(tiles(p.thing_count), tiles(p.tokens), static_cast<unsigned>(p.batch));
  kernel<<<grid, kTileThreads, kShared, stream>>>(p, view<T>(p.features), view<T>(p.things));
  return launched();
}

template <bool kSelf>
cudaError_t launch_tiled_cosines(const CosinesParams& p, cudaStream_t stream) {
  const bool vector = vectorised(p.features, p.width) && vectorised(p.things, p.width);
  return with_type(p.features.dtype, vector, [&](auto type, auto whole) {
    return launch_typed_cosines<decltype(type), decltype(whole)::value, kSelf>(p, stream);
  });
}

}  // namespace

cudaError_t launch_cosines(const CosinesParams& p, cudaStream_t stream) {
  if (p.batch * p.tokens * p.thing_count == 0) return cudaSuccess;
  return launch_tiled_cosines<false>(p, stream);
}

cudaError_t launch_pair_cosines(const Rows& features, int64_t batch, int64_t tokens, int64_t width, float* cosines,
                                cudaStream_t stream) {
  return launch_tiled_cosines<true>({.features = features,
                                     .things = features,
                                     .batch = batch,
                                     .tokens = tokens,
                                     .thing_count = tokens,
                                     .width = width,
                                     .cosines = cosines},
                                    stream);
}

}  // namespace ficoco
