// What one thread does alone: integer and floating-point intrinsics, cache hints, atomics.
#pragma once
#include <math.h>
#include <bit>
#include <cmath>
#include <type_traits>
#include "block.h"

namespace cuemu {

// A GPU faults at an address that is not a multiple of the access's size; x86 does not. UBSan sees plain accesses
// through float4* and uint4*; those that pass through here are seen in every build.
template <class T>
T* aligned(T* pointer, const Location& location) {
  if (reinterpret_cast<uintptr_t>(pointer) % alignof(T) != 0) {
    die("misaligned address: an access of " + std::to_string(sizeof(T)) + " bytes", &location);
  }
  return pointer;
}

template <class T>
concept Number = std::is_arithmetic_v<T>;

}  // namespace cuemu

// Bits.
inline int __popc(unsigned value) { return std::popcount(value); }
inline int __popcll(unsigned long long value) { return std::popcount(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }
inline int __clz(int value) { return std::countl_zero(static_cast<unsigned>(value)); }
inline int __clzll(long long value) { return std::countl_zero(static_cast<unsigned long long>(value)); }
inline unsigned long long __brevll(unsigned long long value) {
  unsigned long long reversed = 0;
  for (int i = 0; i < 64; ++i) reversed |= (value >> i & 1) << (63 - i);
  return reversed;
}
inline unsigned __brev(unsigned value) { return static_cast<unsigned>(__brevll(value) >> 32); }
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((uint64_t{high} << 32 | low) >> (shift & 31));
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((uint64_t{high} << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t bytes = uint64_t{high} << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned pick = selector >> (4 * i) & 15;
    unsigned byte = bytes >> (8 * (pick & 7)) & 0xFF;
    if ((pick & 8) != 0) byte = (byte & 0x80) != 0 ? 0xFF : 0;  // the sign of the byte, spread
    result |= byte << (8 * i);
  }
  return result;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
inline int __mulhi(int a, int b) { return static_cast<int>(int64_t{a} * b >> 32); }

inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline float __uint_as_float(unsigned value) { return std::bit_cast<float>(value); }
inline int __float_as_int(float value) { return std::bit_cast<int>(value); }
inline float __int_as_float(int value) { return std::bit_cast<float>(value); }
inline long long __double_as_longlong(double value) { return std::bit_cast<long long>(value); }
inline double __longlong_as_double(long long value) { return std::bit_cast<double>(value); }

// Conversions. Like the GPU's they saturate, and NaN is 0.
inline int __float2int_rz(float value) {
  if (std::isnan(value)) return 0;
  if (value >= 2147483648.f) return 2147483647;
  return value <= -2147483648.f ? -2147483647 - 1 : static_cast<int>(value);
}
inline int __float2int_rn(float value) { return __float2int_rz(std::nearbyint(value)); }
inline int __float2int_rd(float value) { return __float2int_rz(std::floor(value)); }
inline int __float2int_ru(float value) { return __float2int_rz(std::ceil(value)); }
inline unsigned __float2uint_rz(float value) {
  if (!(value > 0.f)) return 0;
  return value >= 4294967296.f ? ~0u : static_cast<unsigned>(value);
}
inline unsigned __float2uint_rn(float value) { return __float2uint_rz(std::nearbyint(value)); }
inline float __int2float_rn(int value) { return static_cast<float>(value); }
inline float __uint2float_rn(unsigned value) { return static_cast<float>(value); }

// Arithmetic. The named roundings are exact; the fast functions are better here than on a GPU.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fsqrt_rn(float value) { return std::sqrt(value); }
inline float __frcp_rn(float value) { return 1.f / value; }
inline float __frsqrt_rn(float value) { return static_cast<float>(1. / std::sqrt(static_cast<double>(value))); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float value) { return value > 0.f ? std::fmin(value, 1.f) : 0.f; }
inline float rsqrtf(float value) { return __frsqrt_rn(value); }
inline double rsqrt(double value) { return 1. / std::sqrt(value); }
// glibc's header declares these names, as aliases without a definition.
inline float __expf(float value) { return std::exp(value); }
inline float __exp10f(float value) { return std::pow(10.f, value); }
inline float __logf(float value) { return std::log(value); }
inline float __log2f(float value) { return std::log2(value); }
inline float __powf(float base, float exponent) { return std::pow(base, exponent); }

// CUDA's take two different types, and for floats a NaN loses.
template <cuemu::Number A, cuemu::Number B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmax(static_cast<T>(a), static_cast<T>(b));
  return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}
template <cuemu::Number A, cuemu::Number B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmin(static_cast<T>(a), static_cast<T>(b));
  return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}

// Loads and stores with a cache hint.
#define CUEMU_LOAD(name)                    \
  template <class T>                        \
  T name(const T* from, CUEMU_LOCATION) {   \
    return *cuemu::aligned(from, location); \
  }
#define CUEMU_STORE(name)                                                  \
  template <class T>                                                       \
  void name(T* to, const std::type_identity_t<T>& value, CUEMU_LOCATION) { \
    *cuemu::aligned(to, location) = value;                                 \
  }
CUEMU_LOAD(__ldg)
CUEMU_LOAD(__ldca)
CUEMU_LOAD(__ldcg)
CUEMU_LOAD(__ldcs)
CUEMU_LOAD(__ldcv)
CUEMU_LOAD(__ldlu)
CUEMU_STORE(__stwb)
CUEMU_STORE(__stcg)
CUEMU_STORE(__stcs)
CUEMU_STORE(__stwt)
#undef CUEMU_LOAD
#undef CUEMU_STORE

// Atomics. Threads take turns only at barriers and warp operations, so plain code is atomic.
#define CUEMU_ATOMIC(name, result)                                               \
  template <class T>                                                             \
  T atomic##name(T* at, std::type_identity_t<T> value, CUEMU_LOCATION) {         \
    const T old = *cuemu::aligned(at, location);                                 \
    *at = static_cast<T>(result);                                                \
    return old;                                                                  \
  }                                                                              \
  template <class T>                                                             \
  T atomic##name##_block(T* at, std::type_identity_t<T> value, CUEMU_LOCATION) { \
    return atomic##name(at, value, location);                                    \
  }
CUEMU_ATOMIC(Add, old + value)
CUEMU_ATOMIC(Sub, old - value)
CUEMU_ATOMIC(Max, old < value ? value : old)
CUEMU_ATOMIC(Min, value < old ? value : old)
CUEMU_ATOMIC(And, (old & value))
CUEMU_ATOMIC(Or, old | value)
CUEMU_ATOMIC(Xor, old ^ value)
CUEMU_ATOMIC(Exch, value)
CUEMU_ATOMIC(Inc, old >= value ? T{0} : old + 1)
CUEMU_ATOMIC(Dec, old == 0 || old > value ? value : old - 1)
#undef CUEMU_ATOMIC
template <class T>
T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> value, CUEMU_LOCATION) {
  const T old = *cuemu::aligned(at, location);
  if (std::memcmp(&old, &expected, sizeof(T)) == 0) *at = value;
  return old;
}

// Blocks run one after another, and what a thread wrote all others see: a fence has nothing to do, so a missing one
// stays unseen.
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) {}
[[noreturn]] inline void __trap() { cuemu::die("__trap"); }
inline long long clock64() { return static_cast<long long>(cuemu::block.serial); }
