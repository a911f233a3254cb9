// For every even token of ToMe the odd token whose unit key is most like its own: 2 |A| |B| d FLOPs an image, bound by
// arithmetic.
//
// Even tokens are packed into panels of at most 24 that run against blocks of odd ones; a block of similarities is
// compared with the best so far and forgotten, so the (|A|, |B|) matrix never exists.
//
// A processor with AVX-512 VNNI multiplies bytes at four times the rate of floats. There keys are rounded to bytes
// first, and only the odd tokens that rounding cannot tell from the best are compared in float, by the sums that the
// panels form, in their order: the result is the same bit for bit. By Cauchy and Schwarz, with keys at most of length 1
// and rounding errors e, two unit keys' dot product is off by at most |e_even| + (1 + |e_even|) |e_odd|; whoever is
// more than twice that below the best cannot be the best. Where too many are left (a blank picture), panels
// do it all.
//
// Tried and given up: the same with AVX2, which multiplies 16 bit integers at twice the rate. It came out 7 % faster.
#include "cpu/nearest.h"

#include <cmath>
#include <limits>

#include "cpu/kernels.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define FICOCO_VNNI 1
#endif

namespace ficoco {
namespace {

constexpr int64_t kBlock = 64;  // odd tokens whose similarities are held at once: 6 KiB

// Even tokens [begin, begin + count) of a panel against every odd one.
void panel_nearest(const float* metric, int64_t width, const Side& even, const Side& odd, int64_t begin, int64_t count,
                   float* best, int32_t* nearest) {
  const int64_t w = panel_width(count);
  const float* rows[kPanel];
  for (int64_t i = 0; i < count; ++i) rows[i] = metric + even.token(begin + i) * width;
  std::vector<float> packed(width * w), scores(kBlock * w);
  simd.pack_panel(rows, count, width, w, 1.f, packed.data());
  for (int64_t j = 0; j < odd.count; j += kBlock) {
    const int64_t block = std::min(kBlock, odd.count - j);
    std::fill_n(scores.begin(), block * w, 0.f);
    simd.panel_dot(packed.data(), w, width, metric + odd.token(j) * width, 2 * width, nullptr, block, scores.data());
    simd.max_columns(scores.data(), block, w, static_cast<int32_t>(j), best + begin, nearest + begin);
  }
}

#ifdef FICOCO_VNNI
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in the compiler's own header: GCC bug 105593
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")

constexpr int64_t kLanes = 16;           // odd tokens of one vector of sums
constexpr int64_t kTask = 2 * kPanel;    // even tokens of one task: it has scratch memory to set up
constexpr int64_t kRows = 6;             // even tokens that share a read of the odd ones: 24 sums, 4 keys, 1 broadcast
constexpr int64_t kColumns = 4;          // vectors of sums of each
constexpr int64_t kChains = 8;           // pairs settled at once, one to a lane
constexpr int64_t kWorthScreening = 32;  // odd tokens for each even one from which on a panel is as fast
constexpr int64_t kWorthSettling = 6;    // and of those that float sums in any order cannot tell apart
constexpr float kUnit = 1.0001f;         // length of a unit key, with the rounding of its division

inline __mmask16 lanes(int64_t left) { return left >= kLanes ? 0xffff : static_cast<__mmask16>((1u << left) - 1); }

float largest(const float* x, int64_t width) {
  __m512 most = _mm512_setzero_ps();
  for (int64_t c = 0; c < width; c += kLanes) {
    most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_maskz_loadu_ps(lanes(width - c), x + c)));
  }
  return _mm512_reduce_max_ps(most);
}

float byte_scale(float most) { return most > 1e-30f ? most / 127.f : 1.f; }

// Bytes q with x = scale * q + error, plus `offset`. Returns a bound on the length of the error.
float round_to_bytes(const float* x, int64_t width, float scale, int32_t offset, uint8_t* q) {
  const __m512 inverse = _mm512_set1_ps(1.f / scale), unit = _mm512_set1_ps(scale);
  const __m512i shift = _mm512_set1_epi32(offset);
  __m512 error = _mm512_setzero_ps();
  for (int64_t c = 0; c < width; c += kLanes) {
    const __mmask16 here = lanes(width - c);
    const __m512 value = _mm512_maskz_loadu_ps(here, x + c);
    const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(value, inverse));
    const __m512 rest = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(whole), unit, value);
    error = _mm512_fmadd_ps(rest, rest, error);
    _mm512_mask_cvtepi32_storeu_epi8(q + c, here, _mm512_add_epi32(whole, shift));
  }
  return std::sqrt(_mm512_reduce_add_ps(error)) * kUnit + 1e-6f;
}

// The odd tokens' keys in bytes, 128 more than they are, as VNNI wants one side unsigned. That adds the same to all
// sums of an even token. Word c of 16 tokens lies side by side.
struct OddBytes {
  OddBytes(const float* metric, int64_t width, const Side& odd)
      : words(ceil_div(width, 4)), columns(ceil_div(odd.count, kLanes) * kLanes), packed(words * columns, 0) {
    float most = 0.f;
    for (int64_t j = 0; j < odd.count; ++j) most = std::max(most, largest(metric + odd.token(j) * width, width));
    scale = byte_scale(most);
    std::vector<uint8_t> row(words * 4);
    for (int64_t j = 0; j < columns; ++j) {
      const float* x = metric + odd.token(std::min(j, odd.count - 1)) * width;
      error = std::max(error, round_to_bytes(x, width, scale, 128, row.data()));
      int32_t* to = packed.data() + (j / kLanes) * words * kLanes + j % kLanes;
      for (int64_t c = 0; c < words; ++c) std::memcpy(to + c * kLanes, row.data() + 4 * c, 4);
    }
  }

  int64_t words, columns;
  float scale, error = 0.f;
  std::vector<int32_t> packed;
};

// sums[i][0 .. 16 V) of kRows even tokens, `words` words each.
template <int V>
inline void byte_products(const uint8_t* rows, const int32_t* keys, int64_t words, int64_t columns, int32_t* sums) {
  __m512i acc[kRows][V];
#pragma GCC unroll 8
  for (int64_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) acc[i][v] = _mm512_setzero_si512();
  }
  for (int64_t c = 0; c < words; ++c) {
    __m512i key[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) key[v] = _mm512_loadu_si512(keys + (v * words + c) * kLanes);
#pragma GCC unroll 8
    for (int64_t i = 0; i < kRows; ++i) {
      int32_t word;
      std::memcpy(&word, rows + (i * words + c) * 4, 4);
      const __m512i x = _mm512_set1_epi32(word);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[i][v] = _mm512_dpbusd_epi32(acc[i][v], key[v], x);
    }
  }
#pragma GCC unroll 8
  for (int64_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) _mm512_storeu_si512(sums + i * columns + v * kLanes, acc[i][v]);
  }
}

void byte_products(const uint8_t* rows, const OddBytes& odd, int32_t* sums) {
  int64_t j = 0;
  for (; j + kColumns * kLanes <= odd.columns; j += kColumns * kLanes) {
    byte_products<kColumns>(rows, odd.packed.data() + j * odd.words, odd.words, odd.columns, sums + j);
  }
  for (; j < odd.columns; j += kLanes) {
    byte_products<1>(rows, odd.packed.data() + j * odd.words, odd.words, odd.columns, sums + j);
  }
}

// The entries of `from` in `chosen`, and whatever up to a vector behind them. Returns their number. Nothing here
// branches on who is near: it cannot be foreseen.
inline int64_t append(__mmask16 chosen, __m512i from, int32_t* to) {
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(chosen, from));
  return __builtin_popcount(chosen);
}

// The odd tokens whose sum is at most `slack` below the largest. Padding repeats the last token, so that the largest
// needs no care.
int64_t near_largest(const int32_t* sums, int64_t columns, int64_t count, float slack, int32_t* found) {
  __m512i most = _mm512_loadu_si512(sums),
          token = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int64_t j = kLanes; j < columns; j += kLanes) most = _mm512_max_epi32(most, _mm512_loadu_si512(sums + j));
  const int64_t least = _mm512_reduce_max_epi32(most) - static_cast<int64_t>(std::min(slack, 0x1p30f)) - 1;
  const __m512i bound = _mm512_set1_epi32(static_cast<int32_t>(std::max<int64_t>(least, -0x7fffffff)));
  int64_t n = 0, j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    n += append(_mm512_cmpge_epi32_mask(_mm512_loadu_si512(sums + j), bound), token, found + n);
    token = _mm512_add_epi32(token, _mm512_set1_epi32(kLanes));
  }
  if (j == count) return n;
  return n +
         append(_mm512_mask_cmpge_epi32_mask(lanes(count - j), _mm512_loadu_si512(sums + j), bound), token, found + n);
}

float dot_any_order(const float* x, const float* y, int64_t width) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t c = 0; c < width; c += kLanes) {
    const __mmask16 here = lanes(width - c);
    sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(here, x + c), _mm512_maskz_loadu_ps(here, y + c), sum);
  }
  return _mm512_reduce_add_ps(sum);
}

// One even token's products with the n odd tokens `found`, in any order of sums; the odd tokens at most `rounding`
// below the largest go to `near`.
int64_t near_best(const float* x, const float* metric, int64_t width, const Side& odd, const int32_t* found, int64_t n,
                  float rounding, float* dots, int32_t* near) {
  const __m512 nothing = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  for (int64_t t = 0; t < n; ++t) dots[t] = dot_any_order(x, metric + odd.token(found[t]) * width, width);
  __m512 most = nothing;
  for (int64_t t = 0; t < n; t += kLanes) {
    most = _mm512_max_ps(most, _mm512_mask_loadu_ps(nothing, lanes(n - t), dots + t));
  }
  const __m512 bound = _mm512_set1_ps(_mm512_reduce_max_ps(most) - rounding);
  int64_t m = 0;
  for (int64_t t = 0; t < n; t += kLanes) {
    const __mmask16 hits = _mm512_mask_cmp_ps_mask(lanes(n - t), _mm512_loadu_ps(dots + t), bound, _CMP_GE_OQ);
    m += append(hits, _mm512_loadu_si512(found + t), near + m);
  }
  return m;
}

// Lane t of out[u] is entry u of row t.
inline void transpose(const __m256* rows, __m256* out) {
  __m256 pairs[8], fours[8];
#pragma GCC unroll 4
  for (int t = 0; t < 8; t += 2) {
    pairs[t] = _mm256_unpacklo_ps(rows[t], rows[t + 1]);
    pairs[t + 1] = _mm256_unpackhi_ps(rows[t], rows[t + 1]);
  }
#pragma GCC unroll 2
  for (int t = 0; t < 8; t += 4) {
#pragma GCC unroll 2
    for (int u = 0; u < 2; ++u) {
      fours[t + 2 * u] = _mm256_shuffle_ps(pairs[t + u], pairs[t + u + 2], 0x44);
      fours[t + 2 * u + 1] = _mm256_shuffle_ps(pairs[t + u], pairs[t + u + 2], 0xee);
    }
  }
#pragma GCC unroll 4
  for (int u = 0; u < 4; ++u) {
    out[u] = _mm256_permute2f128_ps(fours[u], fours[u + 4], 0x20);
    out[u + 4] = _mm256_permute2f128_ps(fours[u], fours[u + 4], 0x31);
  }
}

// Products summed as a panel does, one pair to a lane, against the best of the even tokens; those of one even token
// come in the order of odd ones. `rows` and `near` have room for kChains more.
void settle(const float* metric, int64_t width, const Side& even, const Side& odd, int32_t* rows, int32_t* near,
            int64_t count, float* best, int32_t* nearest) {
  std::fill_n(rows + count, kChains, rows[count - 1]);
  std::fill_n(near + count, kChains, near[count - 1]);
  for (int64_t p = 0; p < count; p += kChains) {
    __m256 sum = _mm256_setzero_ps();
    for (int64_t c = 0; c < width; c += kChains) {
      const auto here = static_cast<__mmask8>(lanes(width - c));
      __m256 x[kChains], y[kChains], xt[kChains], yt[kChains];
#pragma GCC unroll 8
      for (int64_t t = 0; t < kChains; ++t) {
        x[t] = _mm256_maskz_loadu_ps(here, metric + even.token(rows[p + t]) * width + c);
        y[t] = _mm256_maskz_loadu_ps(here, metric + odd.token(near[p + t]) * width + c);
      }
      transpose(x, xt);
      transpose(y, yt);
#pragma GCC unroll 8
      for (int64_t u = 0; u < kChains; ++u) sum = _mm256_fmadd_ps(xt[u], yt[u], sum);
    }
    float dot[kChains];
    _mm256_storeu_ps(dot, sum);
    for (int64_t t = 0; t < std::min(kChains, count - p); ++t) {
      if (dot[t] > best[rows[p + t]]) {
        best[rows[p + t]] = dot[t];
        nearest[rows[p + t]] = near[p + t];
      }
    }
  }
}

// What panel_nearest does. False: too many odd tokens are alike, and nothing was done.
bool screened_nearest(const float* metric, int64_t width, const Side& even, const Side& odd, const OddBytes& bytes,
                      int64_t begin, int64_t count, float* best, int32_t* nearest) {
  const float rounding = static_cast<float>(width) * 0x1p-23f;  // of two float sums, whatever their order
  const int64_t room = kWorthSettling * count + bytes.columns + kLanes + kChains;
  std::vector<uint8_t> keys(kRows * bytes.words * 4);
  std::vector<int32_t> sums(kRows * bytes.columns), found(bytes.columns + kLanes), rows(room), near(room);
  std::vector<float> dots(bytes.columns + kLanes);
  int64_t screened = 0, settled = 0;
  for (int64_t first = begin; first < begin + count; first += kRows) {
    const int64_t here = std::min(kRows, begin + count - first);
    float slack[kRows];
    for (int64_t i = 0; i < here; ++i) {
      const float* x = metric + even.token(first + i) * width;
      const float scale = byte_scale(largest(x, width));
      const float error = round_to_bytes(x, width, scale, 0, keys.data() + i * bytes.words * 4);
      const float off = kUnit * (error + (1.f + error) * bytes.error) + rounding;
      slack[i] = 2.f * off / (scale * bytes.scale);
    }
    byte_products(keys.data(), bytes, sums.data());
    for (int64_t i = 0; i < here; ++i) {
      const int32_t* of_row = sums.data() + i * bytes.columns;
      const int64_t n = near_largest(of_row, bytes.columns, odd.count, slack[i], found.data());
      screened += n;
      if (screened > kWorthScreening * count || settled > kWorthSettling * count) return false;
      const float* x = metric + even.token(first + i) * width;
      const int64_t m =
          near_best(x, metric, width, odd, found.data(), n, 2.f * rounding, dots.data(), near.data() + settled);
      std::fill_n(rows.data() + settled, m, static_cast<int32_t>(first + i));
      settled += m;
    }
  }
  settle(metric, width, even, odd, rows.data(), near.data(), settled, best, nearest);
  return true;
}

#pragma GCC pop_options
#pragma GCC diagnostic pop

// A sum of 255 * 127 for each channel must fit 32 bits; with few channels there is nothing to gain.
bool screens(int64_t width) { return simd.vnni && width >= 16 && width <= 4096; }
#endif

}  // namespace

void find_nearest(const std::vector<float>& metric, int64_t width, const Side& even, const Side& odd,
                  std::vector<float>& best, std::vector<int32_t>& nearest) {
  best.assign(ceil_div(even.count, kPanel) * kPanel, -std::numeric_limits<float>::infinity());
  nearest.assign(best.size(), 0);
  const auto panels = [&](int64_t begin, int64_t count) {
    each(ceil_div(count, kPanel), [&](int64_t p) {
      const int64_t first = begin + p * kPanel, here = std::min(kPanel, begin + count - first);
      panel_nearest(metric.data(), width, even, odd, first, here, best.data(), nearest.data());
    });
  };
#ifdef FICOCO_VNNI
  if (screens(width)) {
    const OddBytes bytes(metric.data(), width, odd);
    return each(ceil_div(even.count, kTask), [&](int64_t task) {
      const int64_t begin = task * kTask, count = std::min(kTask, even.count - begin);
      if (!screened_nearest(metric.data(), width, even, odd, bytes, begin, count, best.data(), nearest.data())) {
        panels(begin, count);
      }
    });
  }
#endif
  panels(0, even.count);
}

}  // namespace ficoco
