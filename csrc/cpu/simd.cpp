#include "cpu/simd.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string_view>

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

#define FICOCO_TABLE(name, vnni, isa)                                                                                \
  Simd {                                                                                                             \
    name, vnni, isa::load_half, isa::load_bfloat16, isa::store_half, isa::store_bfloat16, isa::add, isa::axpy,       \
        isa::divide, isa::sum, isa::dot, isa::sum_squares, isa::sum_above, isa::unit_rows, isa::sum_rows,            \
        isa::dot_rows, isa::pack_panel, isa::panel_dot, isa::exp_columns, isa::add_scaled_columns, isa::max_columns, \
        isa::any_nan, isa::top_columns                                                                               \
  }

#ifdef FICOCO_AVX2
enum Level { kBaseline, kAvx2, kVnni };

// The level of the processor, or a lower one that the environment asks for.
static Level level() {
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool vnni = avx2 && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("popcnt") &&
                    __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512vnni");
  const char* asked = std::getenv("FICOCO_CPU_SIMD");
  const std::string_view most = asked ? asked : "";
  if (most == "baseline" || !avx2) return kBaseline;
  return most == "avx2" || !vnni ? kAvx2 : kVnni;
}
#endif

static Simd choose() {
#ifdef FICOCO_AVX2
  if (level() == kVnni) return FICOCO_TABLE("avx512vnni", true, avx2);
  if (level() == kAvx2) return FICOCO_TABLE("avx2", false, avx2);
#endif
  return FICOCO_TABLE("baseline", false, baseline);
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
