// What the kernels share: 16-byte loads of any dtype as floats, reductions in a fixed order, and the launch itself.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cassert>
#include <cstdint>

#include "cuda/ptx.cuh"
#include "cuda/launch.h"

namespace ficoco {

constexpr int kWarp = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
__host__ __device__ constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Elements of one 16-byte access.
template <class T>
constexpr int kPer = 16 / static_cast<int>(sizeof(T));

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// 16 bytes as they lie in memory.
template <class T>
struct alignas(16) Pack {
  T x[kPer<T>];
};

// The next kPer elements from `src`, of which `left` exist; the rest is 0. With kVector all exist and src is aligned.
template <class T, bool kVector>
__device__ __forceinline__ Pack<T> load_pack(const T* __restrict__ src, int64_t left) {
  Pack<T> out;
  if constexpr (kVector) {
    *reinterpret_cast<uint4*>(&out) = __ldg(reinterpret_cast<const uint4*>(src));
  } else {
#pragma unroll
    for (int i = 0; i < kPer<T>; ++i) out.x[i] = i < left ? src[i] : from_float<T>(0.f);
  }
  return out;
}

template <class T, bool kVector>
__device__ __forceinline__ void store_pack(T* __restrict__ dst, const Pack<T>& value, int64_t left) {
  if constexpr (kVector) {
    *reinterpret_cast<uint4*>(dst) = *reinterpret_cast<const uint4*>(&value);
  } else {
#pragma unroll
    for (int i = 0; i < kPer<T>; ++i) {
      if (i < left) dst[i] = value.x[i];
    }
  }
}

// Rows on the device, typed.
template <class T>
struct View {
  const T* data;
  int64_t stride_b, stride_h, stride_n;
  int heads;
  __device__ __forceinline__ const T* row(int64_t b, int64_t h, int64_t n) const {
    return data + b * stride_b + h * stride_h + n * stride_n;
  }
};

template <class T>
View<T> view(const Rows& rows) {
  return {static_cast<const T*>(rows.data), rows.stride_b, rows.stride_h, rows.stride_n, static_cast<int>(rows.heads)};
}

// Whether every row of `width` elements can be read 16 bytes at a time.
inline bool vectorised(const Rows& rows, int64_t width) {
  const int64_t per = 16 / size_of(rows.dtype);
  const int64_t strides = rows.stride_b | (rows.heads > 1 ? rows.stride_h : 0) | rows.stride_n | width;
  return reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 && strides % per == 0;
}

template <class Number>
__device__ __forceinline__ Number warp_sum(Number x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
  return x;
}

// Sum over the block, in every thread. All threads call it; `shared` holds 32 numbers and may be used again at once.
template <class Number>
__device__ __forceinline__ Number block_sum(Number x, Number* shared) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
  x = warp_sum(x);
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  x = warp_sum(lane < warps ? shared[lane] : Number{0});
  __syncthreads();
  return x;
}

// Exclusive prefix sum of counts[0..n) in place by one warp; returns the total in every lane.
__device__ __forceinline__ int warp_scan(int* counts, int n) {
  const int lane = threadIdx.x % kWarp;
  int total = 0;
  for (int base = 0; base < n; base += kWarp) {
    const int own = base + lane < n ? counts[base + lane] : 0;
    int sum = own;
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const int below = __shfl_up_sync(kAllLanes, sum, offset);
      if (lane >= offset) sum += below;
    }
    if (base + lane < n) counts[base + lane] = total + sum - own;
    total += __shfl_sync(kAllLanes, sum, kWarp - 1);
  }
  return total;
}

// Rises with the value; equal for 0 and -0; a total order for NaN too, so that a selection always has its size.
__device__ __forceinline__ uint32_t ordered(float value) {
  const uint32_t bits = __float_as_uint(value + 0.f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The inverse of `ordered`; -0 becomes 0.
__device__ __forceinline__ float from_ordered(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

// The better of two (score key, index) pairs: the higher score, then the lower index.
__device__ __forceinline__ void keep_better(uint32_t& key, int& index, uint32_t other_key, int other_index) {
  if (other_key > key || (other_key == key && other_index < index)) {
    key = other_key;
    index = other_index;
  }
}

// True in every thread of the block that arrives last of `blocks`; it sees what the others wrote before. The counter
// starts at 0.
__device__ __forceinline__ bool last_block(uint32_t* counter, uint32_t blocks) {
  __shared__ bool last;
  __syncthreads();  // orders the block's writes before its first thread's add, which others see
  if (threadIdx.x == 0) last = count_in(counter) == blocks - 1;
  __syncthreads();
  return last;
}

// Calls f(T{}) with the type that `dtype` names.
template <class F>
cudaError_t with_type(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::kFloat: return f(float{});
    case Dtype::kHalf: return f(__half{});
    case Dtype::kBFloat16: return f(__nv_bfloat16{});
  }
  return cudaErrorInvalidValue;
}

// Calls f(T{}, std::bool_constant<v>{}).
template <class F>
cudaError_t with_type(Dtype dtype, bool vector, const F& f) {
  return with_type(dtype, [&](auto type) { return vector ? f(type, std::true_type{}) : f(type, std::false_type{}); });
}

// Called after each launch: counts it and returns its error.
cudaError_t launched();
// Returns an error of a runtime call and clears the runtime's record of it: otherwise the next launch, though it
// succeeds, would report it.
cudaError_t failed(cudaError_t error);
// Lets a kernel use more dynamic shared memory than the default limit.
template <class... Parameters>
cudaError_t allow_shared(void (*kernel)(Parameters...), size_t bytes) {
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  return error == cudaSuccess ? error : failed(error);
}
constexpr size_t kStaticShared = 2048;  // more static shared memory than any kernel has

// Whether a block on this device can have so much shared memory in all.
cudaError_t has_shared(size_t bytes, bool& has);
cudaError_t set_to_zero(void* data, size_t bytes, cudaStream_t stream);

// Hands out 256-byte aligned pieces of a workspace; without one, only adds up their bytes.
class Pieces {
 public:
  explicit Pieces(void* base) : base_(static_cast<char*>(base)) {}
  // Room for as many T as the product of `counts`. If the product overflows, that is kUncountable bytes.
  template <class T, class... Counts>
  T* take(Counts... counts) {
    const size_t at = used_;
    size_t bytes = sizeof(T);
    for (const int64_t count : {static_cast<int64_t>(counts)...}) {
      const size_t factor = static_cast<size_t>(count);
      bytes = factor && bytes > kUncountable / factor ? kUncountable : bytes * factor;
    }
    bytes = bytes > kUncountable - 255 ? kUncountable : (bytes + 255) / 256 * 256;
    used_ = bytes > kUncountable - used_ ? kUncountable : used_ + bytes;
    return base_ ? reinterpret_cast<T*>(base_ + at) : nullptr;
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

#define FICOCO_TRY(call)                                                    \
  do {                                                                      \
    const cudaError_t ficoco_error = (call);                                \
    if (ficoco_error != cudaSuccess) return ::ficoco::failed(ficoco_error); \
  } while (0)

}  // namespace ficoco
