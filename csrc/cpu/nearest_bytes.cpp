// The nearest odd token of every even token, mostly by products of bytes: a processor with AVX-512 VNNI multiplies
// bytes at four times the rate of floats.
//
// There are three steps, and each looks only at what the one before could not decide:
//   1. Keys are rounded to bytes. Odd tokens that may still be the best, given the rounding, are candidates.
//   2. The candidates are compared in float, summed in any order.
//   3. Those still undecided are summed again as the panels of nearest.cpp do, in their order.
// The result is the same bit for bit, if the compiler contracts the panels' a * b + c (setup.py asks for it).
//
// The bound of step 1: by Cauchy and Schwarz, with keys of length at most 1 and rounding errors e, the product of two
// unit keys is off by at most |e_even| + (1 + |e_even|) |e_odd|. A token that is more than twice that below the best
// cannot be the best. If too many candidates are left (a blank picture), the panels do all the work.
//
// How many are left cannot be foreseen, so hardly anything branches on it: the candidates of each token are appended to
// one list for the whole task, and each step goes through the list before the next begins.
//
// Tried and given up: the same with AVX2, which multiplies 16-bit integers at twice the rate. It came out 7 % faster.
#include "cpu/nearest_bytes.h"

#ifdef FICOCO_VNNI
#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <tuple>
#include <utility>

#include "cpu/simd.h"

namespace ficoco {
namespace {

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in the compiler's own header: GCC bug 105593
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")

constexpr int64_t kLanes = 16;           // numbers of one vector
constexpr int64_t kRows = 6;             // even tokens that share a read of the odd ones: 24 sums, 4 keys, 1 broadcast
constexpr int64_t kColumns = 4;          // vectors of sums of each
constexpr int64_t kChains = 8;           // pairs settled at once, one to a lane
constexpr int64_t kWorthScreening = 32;  // candidates an even token from which a panel is as fast
constexpr int64_t kWorthSettling = 6;    // the same for candidates left after float sums in any order
constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;  // independent of the thread's rounding mode
constexpr float kUnit = 1.0001f;  // length of a unit key, with the rounding of its division

static_assert(ByteScreen::kTask % kRows == 0 && ByteScreen::kTask % 4 == 0, "a task is padded to groups of both");

// The largest difference of two float sums of the same products in different orders.
inline float rounding(int64_t width) { return static_cast<float>(width) * 0x1p-23f; }

inline __mmask16 lanes(int64_t left) { return left >= kLanes ? 0xffff : static_cast<__mmask16>((1u << left) - 1); }

// Four vectors' sums, one to a lane.
inline __m128 four_sums(const __m512* x) {
  const __m512 low = _mm512_unpacklo_ps(x[0], x[1]) + _mm512_unpackhi_ps(x[0], x[1]);
  const __m512 high = _mm512_unpacklo_ps(x[2], x[3]) + _mm512_unpackhi_ps(x[2], x[3]);
  const __m512 four = _mm512_shuffle_ps(low, high, 0x44) + _mm512_shuffle_ps(low, high, 0xee);
  const __m256 two = _mm512_castps512_ps256(four) + _mm512_extractf32x8_ps(four, 1);
  return _mm256_castps256_ps128(two) + _mm256_extractf128_ps(two, 1);
}

// Elementwise largest magnitudes of a key's vectors and `most`.
inline __m512 largest(const float* x, int64_t width, __m512 most) {
  for (int64_t c = 0; c < width; c += kLanes) {
    most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_maskz_loadu_ps(lanes(width - c), x + c)));
  }
  return most;
}

inline float byte_scale(__m512 most) {
  const float x = _mm512_reduce_max_ps(most);
  return x > 1e-30f ? x / 127.f : 1.f;
}

// Bytes q with x = scale * q + error for four keys; store(c, bytes) takes q + offset of channels [c, c + 16) of each.
// Returns bounds on the lengths of the errors.
template <class Store>
inline __m128 round_to_bytes(const float* const* x, int64_t width, const float* scale, int32_t offset,
                             const Store& store) {
  __m512 error[4], inverse[4], unit[4];
  for (int t = 0; t < 4; ++t) {
    error[t] = _mm512_setzero_ps();
    unit[t] = _mm512_set1_ps(scale[t]);
    inverse[t] = _mm512_set1_ps(1.f / scale[t]);
  }
  for (int64_t c = 0; c < width; c += kLanes) {
    const __mmask16 here = lanes(width - c);
    __m128i bytes[4];
#pragma GCC unroll 4
    for (int t = 0; t < 4; ++t) {
      const __m512 value = _mm512_maskz_loadu_ps(here, x[t] + c);
      const __m512i whole = _mm512_cvt_roundps_epi32(_mm512_mul_ps(value, inverse[t]), kNearest);
      const __m512 rest = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(whole), unit[t], value);
      error[t] = _mm512_fmadd_ps(rest, rest, error[t]);
      bytes[t] = _mm512_cvtepi32_epi8(_mm512_add_epi32(whole, _mm512_set1_epi32(offset)));
    }
    store(c, bytes);
  }
  return _mm_sqrt_ps(four_sums(error)) * kUnit + 1e-6f;
}

// sums[i][0 .. 16 V) of kRows even tokens, `words` words each.
template <int V>
inline void byte_products(const int8_t* rows, const int32_t* keys, int64_t words, int64_t columns, int32_t* sums) {
  __m512i acc[kRows][V];
#pragma GCC unroll 8
  for (int64_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) acc[i][v] = _mm512_setzero_si512();
  }
  for (int64_t c = 0; c < words; ++c) {
    __m512i key[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) key[v] = _mm512_load_si512(keys + (v * words + c) * kLanes);
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
    for (int v = 0; v < V; ++v) _mm512_store_si512(sums + i * columns + v * kLanes, acc[i][v]);
  }
}

void byte_products(const int8_t* rows, const int32_t* keys, int64_t words, int64_t columns, int32_t* sums) {
  int64_t j = 0;
  for (; j + kColumns * kLanes <= columns; j += kColumns * kLanes) {
    byte_products<kColumns>(rows, keys + j * words, words, columns, sums + j);
  }
  for (; j < columns; j += kLanes) byte_products<1>(rows, keys + j * words, words, columns, sums + j);
}

// The least sum that is at most `slack` below the largest of a row.
inline int32_t least_near(const int32_t* sums, int64_t columns, float slack) {
  __m512i most = _mm512_load_si512(sums);
  for (int64_t j = kLanes; j < columns; j += kLanes) most = _mm512_max_epi32(most, _mm512_load_si512(sums + j));
  const int64_t least = _mm512_reduce_max_epi32(most) - static_cast<int64_t>(std::min(slack, 0x1p30f)) - 1;
  return static_cast<int32_t>(std::max<int64_t>(least, -0x7fffffff));
}

// The odd tokens whose sum is at least `least`. Reads and writes up to 3 vectors and 4 numbers past the end.
inline int64_t near_largest(const int32_t* sums, int64_t count, int32_t least, int32_t* found) {
  constexpr int64_t kBits = 4 * kLanes;
  const __m512i bound = _mm512_set1_epi32(least);
  const auto hits_at = [&](int64_t j) -> uint64_t {
    return _mm512_cmpge_epi32_mask(_mm512_load_si512(sums + j), bound);
  };
  int64_t n = 0;
  for (int64_t j = 0; j < count; j += kBits) {
    uint64_t hits =
        hits_at(j) | hits_at(j + kLanes) << 16 | hits_at(j + 2 * kLanes) << 32 | hits_at(j + 3 * kLanes) << 48;
    if (count - j < kBits) hits &= (uint64_t{1} << (count - j)) - 1;
    const int64_t end = n + __builtin_popcountll(hits);
    for (int t = 0; t < 4; ++t, hits = _blsr_u64(hits)) found[n + t] = static_cast<int32_t>(j + _tzcnt_u64(hits));
    for (n += 4; hits; hits = _blsr_u64(hits)) found[n++] = static_cast<int32_t>(j + _tzcnt_u64(hits));
    n = end;
  }
  return n;
}

// Those of n odd tokens whose products are at most `slack` below the largest. Writes up to a vector past the end.
inline int64_t near_best(const int32_t* odd, const float* dots, int64_t n, float slack, int32_t* near) {
  const __m512 nothing = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  __m512 most = nothing;
  for (int64_t t = 0; t < n; t += kLanes) {
    most = _mm512_max_ps(most, _mm512_mask_loadu_ps(nothing, lanes(n - t), dots + t));
  }
  const __m512 bound = _mm512_set1_ps(_mm512_reduce_max_ps(most) - slack);
  int64_t m = 0;
  for (int64_t t = 0; t < n; t += kLanes) {
    const __mmask16 hits = _mm512_mask_cmp_ps_mask(lanes(n - t), _mm512_loadu_ps(dots + t), bound, _CMP_GE_OQ);
    _mm512_storeu_si512(near + m, _mm512_maskz_compress_epi32(hits, _mm512_loadu_si512(odd + t)));
    m += __builtin_popcount(hits);
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

// Bytes of odd tokens are 128 more than the keys, as VNNI wants one side unsigned. That adds the same to all sums of an
// even token. Padding repeats the last token, so that it cannot change a row's largest sum. Returns scale and error.
std::pair<float, float> pack_odd(const float* metric, int64_t width, const Side& odd, int64_t words, int64_t columns,
                                 int32_t* packed) {
  __m512 most = _mm512_setzero_ps();
  for (int64_t j = 0; j < odd.count; ++j) most = largest(metric + odd.token(j) * width, width, most);
  const float of_byte = byte_scale(most), scale[4] = {of_byte, of_byte, of_byte, of_byte};
  __m128 error = _mm_setzero_ps();
  for (int64_t j = 0; j < columns; j += 4) {
    const float* x[4];
    for (int t = 0; t < 4; ++t) x[t] = metric + odd.token(std::min(j + t, odd.count - 1)) * width;
    int32_t* to = packed + j / kLanes * words * kLanes + j % kLanes;
    const auto store = [&](int64_t c, const __m128i* bytes) {  // four words of four tokens: transposed
      const __m128i a = _mm_unpacklo_epi32(bytes[0], bytes[1]), b = _mm_unpacklo_epi32(bytes[2], bytes[3]);
      const __m128i e = _mm_unpackhi_epi32(bytes[0], bytes[1]), f = _mm_unpackhi_epi32(bytes[2], bytes[3]);
      const __m128i word[4] = {_mm_unpacklo_epi64(a, b), _mm_unpackhi_epi64(a, b), _mm_unpacklo_epi64(e, f),
                               _mm_unpackhi_epi64(e, f)};
      for (int t = 0; t < 4; ++t) _mm_store_si128(reinterpret_cast<__m128i*>(to + (c / 4 + t) * kLanes), word[t]);
    };
    error = _mm_max_ps(error, round_to_bytes(x, width, scale, 128, store));
  }
  return {of_byte, std::max(std::max(error[0], error[1]), std::max(error[2], error[3]))};
}

}  // namespace

// Pairs of an even and an odd token, in the order of even ones and then of odd ones.
struct ByteScreen::Pairs {
  explicit Pairs(int64_t room) : even(room + kLanes), odd(room + kLanes) {}

  // `more` odd tokens, already at the end, belong to `token`.
  void claim(int64_t token, int64_t more) {
    for (int64_t t = 0; t < more; t += kLanes) {
      _mm512_storeu_si512(even.data() + count + t, _mm512_set1_epi32(static_cast<int32_t>(token)));
    }
    count += more;
  }

  // Repeats the last pair, so that steps which take several at once are full.
  void pad() {
    _mm512_storeu_si512(even.data() + count, _mm512_set1_epi32(even[count - 1]));
    _mm512_storeu_si512(odd.data() + count, _mm512_set1_epi32(odd[count - 1]));
  }

  int32_t* end() { return odd.data() + count; }

  Buffer<int32_t> even, odd;
  int64_t count = 0;
};

// The work is done in a function because the compiler leaves constructors out of the target above.
ByteScreen::ByteScreen(const float* metric, int64_t width, const Side& even, const Side& odd)
    : metric_(metric),
      width_(width),
      even_(even),
      odd_(odd),
      words_(ceil_div(width, kLanes) * kLanes / 4),
      columns_(ceil_div(odd.count, kLanes) * kLanes),
      packed_(words_ * columns_) {
  std::tie(scale_, error_) = pack_odd(metric, width, odd, words_, columns_, packed_.data());
}

void ByteScreen::round_even(int64_t begin, int64_t count, int8_t* keys, float* slack) const {
  for (int64_t i = 0; i < ceil_div(count, kRows) * kRows; i += 4) {
    const float* x[4];
    float scale[4];
    for (int64_t t = 0; t < 4; ++t) {
      x[t] = even_key(begin + std::min(i + t, count - 1));
      scale[t] = byte_scale(largest(x[t], width_, _mm512_setzero_ps()));
    }
    const auto store = [&](int64_t c, const __m128i* bytes) {
      for (int64_t t = 0; t < 4; ++t) {
        _mm_store_si128(reinterpret_cast<__m128i*>(keys + (i + t) * words_ * 4 + c), bytes[t]);
      }
    };
    const __m128 error = round_to_bytes(x, width_, scale, 0, store);
    const __m128 off = (error + (1.f + error) * error_) * kUnit + rounding(width_);
    _mm_storeu_ps(slack + i, off * 2.f / (_mm_loadu_ps(scale) * scale_));
  }
}

bool ByteScreen::screen(int64_t begin, int64_t count, Pairs& close, int64_t* ends) const {
  Buffer<int8_t> keys(kTask * words_ * 4);
  Buffer<int32_t> sums(kRows * columns_ + 3 * kLanes);
  float slack[kTask];
  round_even(begin, count, keys.data(), slack);
  for (int64_t first = 0; first < count; first += kRows) {
    byte_products(keys.data() + first * words_ * 4, packed_.data(), words_, columns_, sums.data());
    const int64_t here = std::min(kRows, count - first);
    int32_t least[kRows];
    for (int64_t i = 0; i < here; ++i) least[i] = least_near(sums.data() + i * columns_, columns_, slack[first + i]);
    for (int64_t i = 0; i < here; ++i) {
      const int32_t* of_row = sums.data() + i * columns_;
      close.claim(begin + first + i, near_largest(of_row, odd_.count, least[i], close.end()));
      ends[first + i] = close.count;
      if (close.count > kWorthScreening * count) return false;
    }
  }
  close.pad();
  return true;
}

Buffer<float> ByteScreen::dots_in_any_order(const Pairs& pairs) const {
  Buffer<float> dots(pairs.count + kLanes);
  for (int64_t p = 0; p < pairs.count; p += 4) {
    const float *x[4], *y[4];
    __m512 sum[4];
    for (int t = 0; t < 4; ++t) {
      x[t] = even_key(pairs.even[p + t]);
      y[t] = odd_key(pairs.odd[p + t]);
      sum[t] = _mm512_setzero_ps();
    }
    for (int64_t c = 0; c < width_; c += kLanes) {
      const __mmask16 here = lanes(width_ - c);
#pragma GCC unroll 4
      for (int t = 0; t < 4; ++t) {
        sum[t] = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(here, x[t] + c), _mm512_maskz_loadu_ps(here, y[t] + c), sum[t]);
      }
    }
    _mm_storeu_ps(dots.data() + p, four_sums(sum));
  }
  return dots;
}

void ByteScreen::settle(const Pairs& pairs, float* best, int32_t* nearest) const {
  for (int64_t p = 0; p < pairs.count; p += kChains) {
    __m256 sum = _mm256_setzero_ps();
    for (int64_t c = 0; c < width_; c += kChains) {
      const auto here = static_cast<__mmask8>(lanes(width_ - c));
      __m256 x[kChains], y[kChains], xt[kChains], yt[kChains];
#pragma GCC unroll 8
      for (int64_t t = 0; t < kChains; ++t) {
        x[t] = _mm256_maskz_loadu_ps(here, even_key(pairs.even[p + t]) + c);
        y[t] = _mm256_maskz_loadu_ps(here, odd_key(pairs.odd[p + t]) + c);
      }
      transpose(x, xt);
      transpose(y, yt);
      if (width_ - c >= kChains) {
#pragma GCC unroll 8
        for (int64_t u = 0; u < kChains; ++u) sum = _mm256_fmadd_ps(xt[u], yt[u], sum);
      } else {  // exactly the steps of a panel: one more, 0 * 0, would turn -0 into 0
        for (int64_t u = 0; u < width_ - c; ++u) sum = _mm256_fmadd_ps(xt[u], yt[u], sum);
      }
    }
    float dot[kChains];
    _mm256_storeu_ps(dot, sum);
    for (int64_t t = 0; t < std::min(kChains, pairs.count - p); ++t) {
      const int32_t token = pairs.even[p + t];
      if (dot[t] > best[token]) {
        best[token] = dot[t];
        nearest[token] = pairs.odd[p + t];
      }
    }
  }
}

bool ByteScreen::nearest(int64_t begin, int64_t count, float* best, int32_t* nearest) const {
  int64_t ends[kTask];
  Pairs close(kWorthScreening * count + columns_), closest(kWorthSettling * count + columns_);
  if (!screen(begin, count, close, ends)) return false;
  const Buffer<float> dots = dots_in_any_order(close);
  for (int64_t i = 0, from = 0; i < count; from = ends[i++]) {
    closest.claim(begin + i, near_best(close.odd.data() + from, dots.data() + from, ends[i] - from,
                                       2.f * rounding(width_), closest.end()));
    if (closest.count > kWorthSettling * count) return false;
  }
  closest.pad();
  settle(closest, best, nearest);
  return true;
}

#pragma GCC pop_options
#pragma GCC diagnostic pop

// With few channels there is nothing to gain; above 4096 the bounds on rounding were not checked.
bool ByteScreen::suits(int64_t width) { return simd.vnni && width >= 16 && width <= 4096; }

}  // namespace ficoco

#endif
