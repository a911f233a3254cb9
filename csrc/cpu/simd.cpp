#include "cpu/simd.h"

#include <algorithm>
#include <cstring>
#include <limits>

#define FICOCO_INLINE __attribute__((always_inline)) inline

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FICOCO_AVX2 1
#endif

namespace ficoco {

namespace baseline {
#include "cpu/simd_body.h"
}

#ifdef FICOCO_AVX2
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#include "cpu/simd_body.h"
}
#pragma GCC pop_options
#endif

#define FICOCO_TABLE(isa)                                                                                             \
  Simd {                                                                                                              \
    #isa, isa::load_half, isa::load_bfloat16, isa::store_half, isa::store_bfloat16, isa::add, isa::axpy, isa::divide, \
        isa::sum, isa::dot, isa::sum_squares, isa::sum_rows, isa::dot_rows, isa::pack_panel, isa::panel_dot,          \
        isa::exp_columns, isa::add_scaled_columns, isa::max_columns, isa::any_nan, isa::top_columns                   \
  }

static Simd choose() {
#ifdef FICOCO_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return FICOCO_TABLE(avx2);
#endif
  return FICOCO_TABLE(baseline);
}

const Simd simd = choose();

void load(const void* src, Dtype dtype, float* dst, int64_t n) {
  switch (dtype) {
    case Dtype::kFloat: std::memcpy(dst, src, n * sizeof(float)); return;
    case Dtype::kHalf: simd.load_half(static_cast<const uint16_t*>(src), dst, n); return;
    case Dtype::kBFloat16: simd.load_bfloat16(static_cast<const uint16_t*>(src), dst, n); return;
  }
}

void store(const float* src, Dtype dtype, void* dst, int64_t n) {
  switch (dtype) {
    case Dtype::kFloat: std::memcpy(dst, src, n * sizeof(float)); return;
    case Dtype::kHalf: simd.store_half(src, static_cast<uint16_t*>(dst), n); return;
    case Dtype::kBFloat16: simd.store_bfloat16(src, static_cast<uint16_t*>(dst), n); return;
  }
}

}  // namespace ficoco
