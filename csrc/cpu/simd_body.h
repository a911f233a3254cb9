// Included by simd.cpp once per instruction set, each time in another namespace and under another target pragma: the
// vector types are lowered when a function is parsed, so helpers must be compiled for the same target as their callers.
// No include and no include guard here.

// GCC and clang lower this to whatever the target has: one AVX register, or two SSE ones.
typedef float Vec __attribute__((vector_size(32)));
typedef int32_t IntVec __attribute__((vector_size(32)));
typedef uint16_t ShortVec __attribute__((vector_size(16)));
constexpr int64_t kLanes = 8;
constexpr int64_t kPrefetchFloats = 128;

FICOCO_INLINE Vec loadu(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

FICOCO_INLINE void storeu(float* p, Vec v) { std::memcpy(p, &v, sizeof(v)); }

// x - 0 is x, and the compiler knows it: one broadcast. A braced list would become a chain of inserts.
FICOCO_INLINE Vec splat(float x) { return x - Vec{}; }

FICOCO_INLINE Vec as_float(IntVec bits) {
  Vec v;
  std::memcpy(&v, &bits, sizeof(v));
  return v;
}

FICOCO_INLINE IntVec as_bits(Vec value) {
  IntVec v;
  std::memcpy(&v, &value, sizeof(v));
  return v;
}

// IEEE half (low 16 bits) to float. Subnormals go by the integer mantissa: a processor may flush those of floats.
FICOCO_INLINE Vec from_half(IntVec half) {
  const IntVec sign = (half & 0x8000) << 16, exponent = half & 0x7c00, magnitude = half & 0x7fff;
  const IntVec normal = (magnitude << 13) + (112 << 23);
  const IntVec special = (magnitude << 13) | 0x7f800000;  // infinity and NaN
  const IntVec subnormal = as_bits(__builtin_convertvector(magnitude, Vec) * splat(0x1p-24f));
  const IntVec bits = exponent == 0 ? subnormal : (exponent == 0x7c00 ? special : normal);
  return as_float(bits | sign);
}

// Float to IEEE half, rounding to nearest even; from 65520 on to infinity; NaN stays NaN.
FICOCO_INLINE IntVec to_half(Vec value) {
  const IntVec bits = as_bits(value), magnitude = bits & 0x7fffffff;
  const IntVec sign = (bits >> 16) & 0x8000;
  const IntVec normal = (magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const Vec rounded = as_float(magnitude) * splat(0x1p24f) + splat(12582912.f);  // 1.5 * 2^23: the integer is below
  const IntVec subnormal = as_bits(rounded) - 0x4b400000;
  IntVec half = magnitude < 0x38800000 ? subnormal : normal;
  half = magnitude >= 0x477ff000 ? IntVec{} + 0x7c00 : half;
  half = magnitude > 0x7f800000 ? IntVec{} + 0x7e00 : half;
  return half | sign;
}

// exp(x) for x <= 0, within 2 ulp: 2^n from the exponent bits, 2^f from a polynomial.
FICOCO_INLINE Vec exp_nonpositive(Vec x) {
  constexpr float kMagic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  const IntVec low = x < splat(-87.f);  // the result would be subnormal: flush to zero
  const Vec n = (x * splat(1.44269504f) + splat(kMagic)) - splat(kMagic);
  Vec f = x - n * splat(0.693145752f);
  f = f - n * splat(1.42860677e-6f);
  Vec p = splat(1.98412698e-4f);
  p = p * f + splat(1.38888889e-3f);
  p = p * f + splat(8.33333333e-3f);
  p = p * f + splat(4.16666667e-2f);
  p = p * f + splat(1.66666667e-1f);
  p = p * f + splat(0.5f);
  p = p * f * f + f + splat(1.f);
  const IntVec bits = (__builtin_convertvector(n, IntVec) + 127) << 23;
  return as_float(as_bits(p * as_float(bits)) & ~low);
}

FICOCO_INLINE uint16_t round_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

template <int V>
FICOCO_INLINE void panel_rows(const float* panel, int64_t n, const float* r0, const float* r1, const float* r2,
                              const float* r3, float* o0, float* o1, float* o2, float* o3) {
  Vec acc[4][V];
  for (int v = 0; v < V; ++v) {
    acc[0][v] = loadu(o0 + v * kLanes);
    acc[1][v] = loadu(o1 + v * kLanes);
    acc[2][v] = loadu(o2 + v * kLanes);
    acc[3][v] = loadu(o3 + v * kLanes);
  }
  const float* rows[4] = {r0, r1, r2, r3};
  for (int64_t c = 0; c < n; ++c) {
    Vec p[V];
    for (int v = 0; v < V; ++v) p[v] = loadu(panel + (c * V + v) * kLanes);
    for (int t = 0; t < 4; ++t) {  // 12 sums, 3 panel vectors and 1 broadcast: all 16 registers
      const Vec x = splat(rows[t][c]);
      for (int v = 0; v < V; ++v) acc[t][v] += p[v] * x;
    }
  }
  for (int v = 0; v < V; ++v) {
    storeu(o0 + v * kLanes, acc[0][v]);
    storeu(o1 + v * kLanes, acc[1][v]);
    storeu(o2 + v * kLanes, acc[2][v]);
    storeu(o3 + v * kLanes, acc[3][v]);
  }
}

template <int V>
FICOCO_INLINE void panel_all(const float* panel, int64_t n, const float* rows, int64_t stride, const int64_t* index,
                             int64_t count, float* out) {
  constexpr int64_t kWidth = V * kLanes;
  float spare[kWidth] = {};  // takes the rows that pad the last block of 4
  for (int64_t j = 0; j < count; j += 4) {
    const float* r[4];
    float* o[4];
    for (int64_t t = 0; t < 4; ++t) {
      const int64_t row = j + t < count ? j + t : j;
      r[t] = rows + (index ? index[row] : row) * stride;
      o[t] = j + t < count ? out + row * kWidth : spare;
    }
    for (int64_t t = j + 4; t < std::min(j + 8, count); ++t) {  // short scattered rows: no hardware prefetch helps
      const float* next = rows + (index ? index[t] : t) * stride;
      for (int64_t c = 0; c < std::min<int64_t>(n, kPrefetchFloats); c += 16) __builtin_prefetch(next + c);
    }
    panel_rows<V>(panel, n, r[0], r[1], r[2], r[3], o[0], o[1], o[2], o[3]);
  }
}

void load_half(const uint16_t* src, float* dst, int64_t n) {
  ShortVec raw = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    std::memcpy(&raw, src + i, sizeof(raw));
    storeu(dst + i, from_half(__builtin_convertvector(raw, IntVec)));
  }
  std::memcpy(&raw, src + i, (n - i) * sizeof(uint16_t));
  const Vec rest = from_half(__builtin_convertvector(raw, IntVec));
  std::memcpy(dst + i, &rest, (n - i) * sizeof(float));
}

void load_bfloat16(const uint16_t* src, float* dst, int64_t n) {
  ShortVec raw;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    std::memcpy(&raw, src + i, sizeof(raw));
    storeu(dst + i, as_float(__builtin_convertvector(raw, IntVec) << 16));
  }
  for (; i < n; ++i) {
    const uint32_t bits = static_cast<uint32_t>(src[i]) << 16;
    std::memcpy(dst + i, &bits, sizeof(bits));
  }
}

void store_half(const float* src, uint16_t* dst, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const ShortVec raw = __builtin_convertvector(to_half(loadu(src + i)), ShortVec);
    std::memcpy(dst + i, &raw, sizeof(raw));
  }
  Vec rest = {};
  std::memcpy(&rest, src + i, (n - i) * sizeof(float));
  const ShortVec raw = __builtin_convertvector(to_half(rest), ShortVec);
  std::memcpy(dst + i, &raw, (n - i) * sizeof(uint16_t));
}

void store_bfloat16(const float* src, uint16_t* dst, int64_t n) {
  for (int64_t i = 0; i < n; ++i) dst[i] = round_bfloat16(src[i]);
}

void add(float* acc, const float* x, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) acc[i] += x[i];
}

void axpy(float* acc, float w, const float* x, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) acc[i] += w * x[i];
}

void divide(float* acc, float divisor, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) acc[i] /= divisor;
}

float sum(const float* x, int64_t n) {
  float s0 = 0.f, s1 = 0.f, s2 = 0.f, s3 = 0.f;
  const int64_t quarter = n / 4;  // four chains hide the latency of the addition
#pragma omp simd reduction(+ : s0, s1, s2, s3)
  for (int64_t i = 0; i < quarter; ++i) {
    s0 += x[i];
    s1 += x[quarter + i];
    s2 += x[2 * quarter + i];
    s3 += x[3 * quarter + i];
  }
  for (int64_t i = 4 * quarter; i < n; ++i) s0 += x[i];
  return (s0 + s1) + (s2 + s3);
}

float dot(const float* x, const float* y, int64_t n) {
  float s = 0.f;
#pragma omp simd reduction(+ : s)
  for (int64_t i = 0; i < n; ++i) s += x[i] * y[i];
  return s;
}

double sum_squares(const float* x, int64_t n) {
  double s0 = 0., s1 = 0.;
  const int64_t half = n / 2;  // two chains hide half the latency of the addition
#pragma omp simd reduction(+ : s0, s1)
  for (int64_t i = 0; i < half; ++i) {
    s0 += static_cast<double>(x[i]) * x[i];
    s1 += static_cast<double>(x[half + i]) * x[half + i];
  }
  if (n % 2) s0 += static_cast<double>(x[n - 1]) * x[n - 1];
  return s0 + s1;
}

float sum_above(const float* x, const float* held, int64_t n) {
  Vec s0 = {}, s1 = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    const Vec a = loadu(x + i), b = loadu(held + i), c = loadu(x + i + kLanes), d = loadu(held + i + kLanes);
    s0 += a > b ? a - b : Vec{};
    s1 += c > d ? c - d : Vec{};
  }
  s0 += s1;
  float total = ((s0[0] + s0[4]) + (s0[1] + s0[5])) + ((s0[2] + s0[6]) + (s0[3] + s0[7]));
  for (; i < n; ++i) total += x[i] > held[i] ? x[i] - held[i] : 0.f;
  return total;
}

FICOCO_INLINE float squares_in_float(const float* x, int64_t n) {
  Vec s0 = {}, s1 = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    const Vec a = loadu(x + i), b = loadu(x + i + kLanes);
    s0 += a * a;
    s1 += b * b;
  }
  s0 += s1;
  float total = ((s0[0] + s0[4]) + (s0[1] + s0[5])) + ((s0[2] + s0[6]) + (s0[3] + s0[7]));
  for (; i < n; ++i) total += x[i] * x[i];
  return total;
}

void unit_rows(const float* rows, int64_t stride, int64_t count, int64_t n, double least, float* out) {
  for (int64_t j = 0; j < count; ++j) {
    const float* x = rows + j * stride;
    float* y = out + j * n;
    const float fast = squares_in_float(x, n);
    const bool fits = fast > 1e-30f && fast < 1e30f;  // else squares may have over- or underflown
    const double length = std::max(std::sqrt(fits ? static_cast<double>(fast) : sum_squares(x, n)), least);
    if (length < 0x1p126) {
      const float inverse = static_cast<float>(1. / length);
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) y[i] = x[i] * inverse;
    } else {  // the inverse would be subnormal, and the length itself may not fit
      for (int64_t i = 0; i < n; ++i) y[i] = static_cast<float>(x[i] / length);
    }
  }
}

void sum_rows(const float* rows, int64_t stride, int64_t count, int64_t n, float* acc) {
  int64_t j = 0;
  for (; j + 4 <= count; j += 4) {
    const float *r0 = rows + j * stride, *r1 = r0 + stride, *r2 = r1 + stride, *r3 = r2 + stride;
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) acc[c] += (r0[c] + r1[c]) + (r2[c] + r3[c]);
  }
  for (; j < count; ++j) {
    const float* row = rows + j * stride;
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) acc[c] += row[c];
  }
}

void dot_rows(const float* rows, int64_t stride, int64_t count, int64_t n, const float* vec, float* out) {
  int64_t j = 0;
  for (; j + 4 <= count; j += 4) {
    const float *r0 = rows + j * stride, *r1 = r0 + stride, *r2 = r1 + stride, *r3 = r2 + stride;
    float s0 = 0.f, s1 = 0.f, s2 = 0.f, s3 = 0.f;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
    for (int64_t c = 0; c < n; ++c) {
      s0 += r0[c] * vec[c];
      s1 += r1[c] * vec[c];
      s2 += r2[c] * vec[c];
      s3 += r3[c] * vec[c];
    }
    out[j] += s0;
    out[j + 1] += s1;
    out[j + 2] += s2;
    out[j + 3] += s3;
  }
  for (; j < count; ++j) {
    const float* row = rows + j * stride;
    float s = 0.f;
#pragma omp simd reduction(+ : s)
    for (int64_t c = 0; c < n; ++c) s += row[c] * vec[c];
    out[j] += s;
  }
}

void pack_panel(const float* const* rows, int64_t count, int64_t n, int64_t width, float factor, float* panel) {
  for (int64_t i = 0; i < width; i += kLanes) {
    const float* r[kLanes];
    for (int64_t t = 0; t < kLanes; ++t) r[t] = rows[std::min(i + t, count - 1)];
    for (int64_t c = 0; c < n; ++c) {
      const Vec x = {r[0][c], r[1][c], r[2][c], r[3][c], r[4][c], r[5][c], r[6][c], r[7][c]};
      storeu(panel + c * width + i, x * splat(factor));
    }
  }
}

void panel_dot(const float* panel, int64_t width, int64_t n, const float* rows, int64_t stride, const int64_t* index,
               int64_t count, float* out) {
  switch (width / kLanes) {
    case 1: panel_all<1>(panel, n, rows, stride, index, count, out); return;
    case 2: panel_all<2>(panel, n, rows, stride, index, count, out); return;
    case 3: panel_all<3>(panel, n, rows, stride, index, count, out); return;
  }
}

void exp_columns(float* scores, int64_t count, int64_t width, float scale, int64_t first, float* sums) {
  for (int64_t i = 0; i < width; i += kLanes) {
    Vec top = splat(-std::numeric_limits<float>::infinity()), total = splat(0.f);
    for (int64_t j = 0; j < count; ++j) {
      const Vec s = loadu(scores + j * width + i) * splat(scale);
      top = s > top ? s : top;
    }
    for (int64_t j = 0; j < count; ++j) {
      const Vec e = exp_nonpositive(loadu(scores + j * width + i) * splat(scale) - top);
      storeu(scores + j * width + i, e);
      if (j >= first) total += e;
    }
    storeu(sums + i, total);
  }
}

void add_scaled_columns(float* acc, const float* scores, int64_t count, int64_t width, const float* factor) {
  for (int64_t i = 0; i < width; i += kLanes) {
    const Vec f = loadu(factor + i);
    for (int64_t j = 0; j < count; ++j) {
      float* a = acc + j * width + i;
      storeu(a, loadu(a) + loadu(scores + j * width + i) * f);
    }
  }
}

void max_columns(const float* scores, int64_t count, int64_t width, int32_t first, float* best, int32_t* index) {
  for (int64_t i = 0; i < width; i += kLanes) {
    Vec top = loadu(best + i);
    IntVec where;
    std::memcpy(&where, index + i, sizeof(where));
    for (int64_t j = 0; j < count; ++j) {
      const Vec value = loadu(scores + j * width + i);
      const IntVec larger = value > top;
      top = larger ? value : top;
      where = larger ? (first + static_cast<int32_t>(j)) - IntVec{} : where;
    }
    storeu(best + i, top);
    std::memcpy(index + i, &where, sizeof(where));
  }
}

bool any_nan(const float* x, int64_t n) {
  int32_t found = 0;
#pragma omp simd reduction(| : found)
  for (int64_t i = 0; i < n; ++i) found |= x[i] != x[i];
  return found != 0;
}

void top_columns(const float* scores, int64_t count, int64_t width, int64_t k, float* best, int32_t* index) {
  for (int64_t i = 0; i < k * width; ++i) {
    best[i] = -std::numeric_limits<float>::infinity();
    index[i] = -1;  // empty: anything goes in, even minus infinity
  }
  for (int64_t j = 0; j < count; ++j) {
    for (int64_t i = 0; i < width; i += kLanes) {
      Vec value = loadu(scores + j * width + i);
      const int32_t at = static_cast<int32_t>(j);
      IntVec where = at - IntVec{};
      for (int64_t t = 0; t < k; ++t) {  // insertion into the falling list: strictly larger values move the rest down
        float* b = best + t * width + i;
        int32_t* p = index + t * width + i;
        Vec held = loadu(b);
        IntVec held_at;
        std::memcpy(&held_at, p, sizeof(held_at));
        const IntVec larger = (value > held) | (held_at < 0) | ((value == held) & (where < held_at));
        const Vec winner = larger ? value : held;
        const IntVec winner_at = larger ? where : held_at;
        value = larger ? held : value;
        where = larger ? held_at : where;
        storeu(b, winner);
        std::memcpy(p, &winner_at, sizeof(winner_at));
      }
    }
  }
}
