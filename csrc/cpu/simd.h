// The inner loops of the CPU kernels, fp32, compiled for the baseline and for AVX2 + FMA; `simd` holds the set that
// the processor can run, chosen when the library is loaded. FICOCO_CPU_SIMD=baseline or =avx2 in the environment asks
// for less than that; the package refuses other values.
#pragma once
#include <cstdint>

#include "params.h"

namespace ficoco {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Widest panel of `panel_dot`, in rows: 3 vectors of 8, which with 4 rows of the other operand fill 16 registers.
constexpr int64_t kPanel = 24;

struct Simd {
  const char* name;

  // The processor also multiplies bytes with AVX-512 VNNI, which `match` does outside this table.
  bool vnni;

  // dst[i] = float(src[i]), and back with rounding to nearest even.
  void (*load_half)(const uint16_t* src, float* dst, int64_t n);
  void (*load_bfloat16)(const uint16_t* src, float* dst, int64_t n);
  void (*store_half)(const float* src, uint16_t* dst, int64_t n);
  void (*store_bfloat16)(const float* src, uint16_t* dst, int64_t n);

  // acc += x; acc += w * x; acc /= divisor.
  void (*add)(float* acc, const float* x, int64_t n);
  void (*axpy)(float* acc, float w, const float* x, int64_t n);
  void (*divide)(float* acc, float divisor, int64_t n);

  float (*sum)(const float* x, int64_t n);
  float (*dot)(const float* x, const float* y, int64_t n);
  double (*sum_squares)(const float* x, int64_t n);

  // The sum of x[i] - held[i] where x is larger. If held[i] rises the sum never does: the order of additions is fixed.
  float (*sum_above)(const float* x, const float* held, int64_t n);

  // out[j] = rows[j] at unit length; a row shorter than `least` is divided by `least`. In place if out is rows.
  void (*unit_rows)(const float* rows, int64_t stride, int64_t count, int64_t n, double least, float* out);

  // acc[c] += sum over rows j of rows[j][c]; out[j] += <rows[j], vec>.
  void (*sum_rows)(const float* rows, int64_t stride, int64_t count, int64_t n, float* acc);
  void (*dot_rows)(const float* rows, int64_t stride, int64_t count, int64_t n, const float* vec, float* out);

  // panel[c * width + i] = factor * rows[i][c]; `width`, 8, 16 or 24, may be more than `count`: the last row is
  // repeated, so that padding is infinite or NaN only where a row is.
  void (*pack_panel)(const float* const* rows, int64_t count, int64_t n, int64_t width, float factor, float* panel);

  // out[j * width + i] += <panel row i, row j> for `count` rows and a panel packed as [n][width], width 8, 16 or 24.
  // Row j starts at rows + index[j] * stride, or at rows + j * stride if index is null.
  void (*panel_dot)(const float* panel, int64_t width, int64_t n, const float* rows, int64_t stride,
                    const int64_t* index, int64_t count, float* out);

  // Softmax numerators of each column of scores [count][width] times `scale`, in place: exp(scale * (s - max)). Their
  // sum over rows [first, count) goes to sums[width]; row 0 is not in it if first is 1, so that a class token that
  // takes nearly all attention does not cost the others precision.
  void (*exp_columns)(float* scores, int64_t count, int64_t width, float scale, int64_t first, float* sums);

  // acc[j][i] += scores[j][i] * factor[i] for matrices [count][width].
  void (*add_scaled_columns)(float* acc, const float* scores, int64_t count, int64_t width, const float* factor);

  // For each column of scores [count][width], best[i] and index[i]: its largest value and `first` plus the row that has
  // it, if it exceeds what best[i] holds already. So the lowest row wins if blocks come in order.
  void (*max_columns)(const float* scores, int64_t count, int64_t width, int32_t first, float* best, int32_t* index);

  bool (*any_nan)(const float* x, int64_t n);

  // For each column of scores [count][width], best[t][i] and index[t][i] for t < k <= count: its k largest values in
  // falling order, the lowest row first among equals.
  void (*top_columns)(const float* scores, int64_t count, int64_t width, int64_t k, float* best, int32_t* index);
};

extern const Simd simd;

// Any dtype to float and back.
void load(const void* src, Dtype dtype, float* dst, int64_t n);
void store(const float* src, Dtype dtype, void* dst, int64_t n);

}  // namespace ficoco
