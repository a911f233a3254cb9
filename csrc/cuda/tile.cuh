// 64 x 64 inner products of rows, 64 channels at a time: tensor cores for half precision, FMA for float, which tensor
// cores would round. Accumulation is fp32 either way.
#pragma once
#include <mma.h>

#include "cuda/utils.cuh"

namespace ficoco {

constexpr int kTile = 64;  // rows of either side, and channels of one step
constexpr int kTileThreads = 256;
constexpr int kScoreStride = kTile + 4;

// Rows of one step in shared memory. 16 bytes of padding a row keep the banks apart and rows aligned for wmma.
template <class T>
struct alignas(128) TileRows {
  static constexpr int kStride = kTile + kPer<T>;
  T x[kTile * kStride];

  // Rows row(0..count) from channel c on, of `width`; what does not exist is 0. `row` may be called for any i < count.
  template <bool kVector, class Row>
  __device__ __forceinline__ void load(const Row& row, int count, int64_t c, int64_t width) {
    constexpr int kPacks = kTile / kPer<T>;
#pragma unroll
    for (int i = threadIdx.x; i < kTile * kPacks; i += kTileThreads) {
      const int r = i / kPacks, at = i % kPacks * kPer<T>;
      Pack<T> value;
      if (r < count && c + at < width) {
        value = load_pack<T, kVector>(row(r) + c + at, width - c - at);
      } else {
#pragma unroll
        for (int e = 0; e < kPer<T>; ++e) value.x[e] = from_float<T>(0.f);
      }
      *reinterpret_cast<Pack<T>*>(x + r * kStride + at) = value;
    }
  }
};

// Sums of one 64 x 64 tile, spread over the 256 threads. Warp w has rows 16 (w % 4) and columns 32 (w / 4).
template <class T>
class TileSums {
 public:
  __device__ TileSums() { clear(); }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (auto& f : sums_) nvcuda::wmma::fill_fragment(f, 0.f);
  }
  // sums[i][j] += <a row i, b row j>.
  __device__ __forceinline__ void add(const TileRows<T>& a, const TileRows<T>& b) {
    namespace wmma = nvcuda::wmma;
    const int warp = threadIdx.x / kWarp, i0 = warp % 4 * 16, j0 = warp / 4 * 32;
    constexpr int kStride = TileRows<T>::kStride;
#pragma unroll
    for (int k = 0; k < kTile; k += 16) {
      wmma::fragment<wmma::matrix_a, 16, 16, 16, T, wmma::row_major> fa;
      wmma::load_matrix_sync(fa, a.x + i0 * kStride + k, kStride);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        wmma::fragment<wmma::matrix_b, 16, 16, 16, T, wmma::col_major> fb;
        wmma::load_matrix_sync(fb, b.x + (j0 + 16 * half) * kStride + k, kStride);
        wmma::mma_sync(sums_[half], fa, fb, sums_[half]);
      }
    }
  }
  // scores[i * kScoreStride + j] = sums[i][j].
  __device__ __forceinline__ void store(float* scores) const {
    const int warp = threadIdx.x / kWarp, i0 = warp % 4 * 16, j0 = warp / 4 * 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      nvcuda::wmma::store_matrix_sync(scores + i0 * kScoreStride + j0 + 16 * half, sums_[half], kScoreStride,
                                      nvcuda::wmma::mem_row_major);
    }
  }

 private:
  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> sums_[2];
};

// Thread t has rows t / 16 + 16 i and columns t % 16 + 16 j for i, j < 4.
template <>
class TileSums<float> {
 public:
  __device__ TileSums() { clear(); }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int e = 0; e < 16; ++e) sums_[e] = 0.f;
  }
  __device__ __forceinline__ void add(const TileRows<float>& a, const TileRows<float>& b) {
    constexpr int kStride = TileRows<float>::kStride;
    const float *pa = a.x + threadIdx.x / 16 * kStride, *pb = b.x + threadIdx.x % 16 * kStride;
#pragma unroll 4
    for (int k = 0; k < kTile; k += 4) {
      float4 x[4], y[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        x[i] = *reinterpret_cast<const float4*>(pa + 16 * i * kStride + k);
        y[i] = *reinterpret_cast<const float4*>(pb + 16 * i * kStride + k);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          float& s = sums_[4 * i + j];
          s = fmaf(x[i].x, y[j].x, s);
          s = fmaf(x[i].y, y[j].y, s);
          s = fmaf(x[i].z, y[j].z, s);
          s = fmaf(x[i].w, y[j].w, s);
        }
      }
    }
  }
  __device__ __forceinline__ void store(float* scores) const {
#pragma unroll
    for (int e = 0; e < 16; ++e) {
      scores[(threadIdx.x / 16 + e / 4 * 16) * kScoreStride + threadIdx.x % 16 + e % 4 * 16] = sums_[e];
    }
  }

 private:
  float sums_[16];
};

// The tile's shared memory: both sides of a step and the scores.
template <class T>
struct TileShared {
  TileRows<T> a, b;
  alignas(128) float scores[kTile * kScoreStride];
};

// sums += inner products of rows a(i) and b(j) over `width` channels. Ends with the block in step.
template <bool kVector, class T, class A, class B>
__device__ __forceinline__ void add_rows(TileSums<T>& sums, TileShared<T>& shared, const A& a, int a_count, const B& b,
                                         int b_count, int64_t width) {
  for (int64_t c = 0; c < width; c += kTile) {
    shared.a.template load<kVector>(a, a_count, c, width);
    shared.b.template load<kVector>(b, b_count, c, width);
    __syncthreads();
    sums.add(shared.a, shared.b);
    __syncthreads();
  }
}

}  // namespace ficoco
