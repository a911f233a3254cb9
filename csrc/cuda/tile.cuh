// 64 x 64 inner products of rows, 64 channels at a time. Half precision runs on tensor cores; float runs by FMA,
// because tensor cores would round it. Accumulation is fp32 either way, and the sums stay in registers.
//
// A kernel walks over steps. The rows of the next steps are copied to shared memory while the rows of one are
// multiplied.
#pragma once
#include <climits>

#include "cuda/ptx.cuh"
#include "cuda/utils.cuh"

namespace ficoco {

constexpr int kTile = 64;  // rows of either side, and channels of one step
constexpr int kTileThreads = 256;
template <class T>
constexpr int kTileBlocks = sizeof(T) == 4 ? 2 : 3;  // as many as registers and shared memory allow

// Rows of one step in shared memory. 16 bytes of padding a row keep the banks apart.
template <class T>
struct alignas(128) TileRows {
  static constexpr int kStride = kTile + kPer<T>;
  T x[kTile * kStride];

  // Starts to copy rows row(0..count) from channel c on, of `width`; missing elements become 0. count >= 1.
  template <bool kVector, class Row>
  __device__ __forceinline__ void load(const Row& row, int count, int64_t c, int64_t width) {
    constexpr int kPacks = kTile / kPer<T>, kRows = kTileThreads / kPacks;
    const int first = threadIdx.x / kPacks, at = threadIdx.x % kPacks * kPer<T>;
    const auto exists = [&](int r) { return r < count && c + at < width; };
    const T* from[kTile / kRows];  // all addresses first: the compiler moves nothing across a copy
#pragma unroll
    for (int i = 0; i < kTile / kRows; ++i) {
      const int r = first + i * kRows;
      from[i] = row(exists(r) ? r : 0) + (exists(r) ? c + at : 0);
    }
#pragma unroll
    for (int i = 0; i < kTile / kRows; ++i) {
      const int r = first + i * kRows;
      T* to = x + r * kStride + at;
      if constexpr (kVector) {
        copy_async<16>(to, from[i], exists(r));
      } else {
        Pack<T> value = {};
        if (exists(r)) value = load_pack<T, false>(from[i], width - c - at);
        *reinterpret_cast<Pack<T>*>(to) = value;
      }
    }
  }
};

// The data of a step. `top` and `inverse` are softmax statistics of its rows or columns, where a kernel wants them.
template <class T>
struct TileStep {
  TileRows<T> a, b;
  float top[kTile], inverse[kTile];

  // Starts to copy the statistics at index(i) for i < count; they become 0 for others and where index(i) < 0.
  template <class Index>
  __device__ __forceinline__ void load_softmax(const float* tops, const float* inverses, const Index& index,
                                               int count) {
    const int i = threadIdx.x;
    if (i >= kTile) return;
    const int64_t at = i < count ? static_cast<int64_t>(index(i)) : -1;
    copy_async<4>(top + i, tops + max(at, int64_t{0}), at >= 0);
    copy_async<4>(inverse + i, inverses + max(at, int64_t{0}), at >= 0);
  }
};

// Steps in flight at once. Short steps, which mostly wait, need more.
constexpr int kStages = 2;
template <class T>
constexpr int kDeepStages = sizeof(T) == 4 ? 2 : 4;

// Enough to have nearly all of a row in flight, for a grid that leaves multiprocessors idle: 148 KB (half).
constexpr int kLoneStages = 8;

template <class T, int kCount>
struct TileShared {
  TileStep<T> steps[kCount];
};

// Steps of a row of `width` channels. No channels are one step of zeros.
__device__ __forceinline__ int chunks_of(int64_t width) {
  return static_cast<int>(max(ceil_div(width, kTile), int64_t{1}));
}

// The turns of `chunks` steps at which a side must be loaded, if it is the same at every turn: only the first turns, if
// its chunks are not overwritten.
template <int kCount>
__device__ __forceinline__ int turns_to_load(int chunks) {
  return kCount % chunks == 0 ? kCount / chunks : INT_MAX;
}

// Takes `turns` turns of `chunks` steps. load(turn, chunk, to) starts the copies of a step, use(turn, chunk, from) has
// them. Threads may be in two neighbouring uses at once.
template <class T, int kCount, class Load, class Use>
__device__ __forceinline__ void walk(TileShared<T, kCount>& shared, int turns, int chunks, const Load& load,
                                     const Use& use) {
  int next_turn = 0, next_chunk = 0;
  const auto load_next = [&](int stage) {
    if (next_turn < turns) load(next_turn, next_chunk, shared.steps[stage]);
    commit_copies();
    if (++next_chunk == chunks) {
      next_chunk = 0;
      ++next_turn;
    }
  };
#pragma unroll
  for (int stage = 0; stage < kCount - 1; ++stage) load_next(stage);
  int stage = 0;
  for (int turn = 0; turn < turns; ++turn) {
    for (int chunk = 0; chunk < chunks; ++chunk) {
      wait_for_copies<kCount - 2>();
      __syncthreads();  // all copies have arrived, and no thread still reads what the next ones overwrite
      load_next((stage + kCount - 1) % kCount);
      use(turn, chunk, shared.steps[stage]);
      stage = (stage + 1) % kCount;
    }
  }
}

// Sums of one 64 x 64 tile, spread over the 256 threads: each has kRows x kColumns of them. kAcross lanes of kRowWarps
// warps share a row. Here warp w has rows 16 (w % 4) and columns 32 (w / 4) and their followers.
template <class T>
class TileSums {
 public:
  static constexpr int kRows = 2, kColumns = 8, kAcross = 4, kRowWarps = 2;

  __device__ TileSums() { clear(); }
  __device__ static int row_warp() { return threadIdx.x / kWarp / 4; }
  __device__ static int row(int i) { return threadIdx.x / kWarp % 4 * 16 + threadIdx.x % kWarp / 4 + 8 * i; }
  __device__ static int column(int j) { return row_warp() * 32 + j / 2 * 8 + threadIdx.x % 4 * 2 + j % 2; }
  __device__ float at(int i, int j) const { return sums_[j / 2][2 * i + j % 2]; }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int e = 0; e < 16; ++e) sums_[e / 4][e % 4] = 0.f;
  }
  // sums[i][j] += <a row i, b row j>.
  __device__ __forceinline__ void add(const TileRows<T>& a, const TileRows<T>& b) {
    constexpr int kStride = TileRows<T>::kStride;
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const T* of_a = a.x + (warp % 4 * 16 + lane % 16) * kStride + lane / 16 * 8;
    const T* of_b = b.x + (warp / 4 * 32 + lane % 8 + lane / 16 * 8) * kStride + lane / 8 % 2 * 8;
#pragma unroll
    for (int k = 0; k < kTile; k += 16) {
      uint32_t fa[4], fb[4];
      load_matrices(fa, of_a + k);
#pragma unroll
      for (int half = 0; half < 2; ++half) {  // 16 columns
        load_matrices(fb, of_b + 16 * half * kStride + k);
        multiply_add<T>(sums_[2 * half], fa, fb[0], fb[1]);
        multiply_add<T>(sums_[2 * half + 1], fa, fb[2], fb[3]);
      }
    }
  }

 private:
  float sums_[4][4];  // of eight columns each, as multiply_add has them
};

// Thread t has rows t / 16 + 16 i and columns t % 16 + 16 j for i, j < 4.
template <>
class TileSums<float> {
 public:
  static constexpr int kRows = 4, kColumns = 4, kAcross = 16, kRowWarps = 1;

  __device__ TileSums() { clear(); }
  __device__ static int row_warp() { return 0; }
  __device__ static int row(int i) { return threadIdx.x / 16 + 16 * i; }
  __device__ static int column(int j) { return threadIdx.x % 16 + 16 * j; }
  __device__ float at(int i, int j) const { return sums_[4 * i + j]; }

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

 private:
  float sums_[16];
};

// Writes value(i, j) of each thread's row(i) and column(j) if the tile has them; out[0] is the tile's corner.
template <class T, class Value>
__device__ __forceinline__ void store_tile(float* out, int64_t stride, int rows, int columns, const Value& value) {
  using Sums = TileSums<T>;
#pragma unroll
  for (int i = 0; i < Sums::kRows; ++i) {
#pragma unroll
    for (int j = 0; j < Sums::kColumns; ++j) {
      if (Sums::row(i) < rows && Sums::column(j) < columns) out[Sums::row(i) * stride + Sums::column(j)] = value(i, j);
    }
  }
}

// The sum of each row's values over the threads that share it, in a fixed order: values[i] is this thread's of row(i),
// write(row, sum) is called once a row. All threads call it, and it ends with a barrier.
template <class T, class Write>
__device__ __forceinline__ void add_across(const float (&values)[TileSums<T>::kRows], const Write& write) {
  using Sums = TileSums<T>;
  __shared__ float parts[Sums::kRowWarps][kTile];
#pragma unroll
  for (int i = 0; i < Sums::kRows; ++i) {
    float sum = values[i];
#pragma unroll
    for (int offset = 1; offset < Sums::kAcross; offset *= 2) sum += __shfl_xor_sync(kAllLanes, sum, offset);
    if (threadIdx.x % Sums::kAcross == 0) parts[Sums::row_warp()][Sums::row(i)] = sum;
  }
  __syncthreads();
  if (threadIdx.x < kTile) {
    float sum = 0.f;
#pragma unroll
    for (int w = 0; w < Sums::kRowWarps; ++w) sum += parts[w][threadIdx.x];
    write(static_cast<int>(threadIdx.x), sum);
  }
  __syncthreads();
}

}  // namespace ficoco
