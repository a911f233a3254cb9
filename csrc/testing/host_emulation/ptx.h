// The inline PTX of the kernels by the names that cuda/ptx.cuh gives it, with the lanes' parts of a matrix as the PTX
// manual draws them.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cmath>
#include <cstring>
#include "warp.h"

namespace cuemu {

struct MatrixLoad {
  const void* row;
  uint32_t* out;
};

inline void exchange_matrices(Thread* lanes, uint32_t members) {
  if (members != ~0u) die("load_matrices without all 32 lanes of the warp");
  for (uint32_t lane = 0; lane < 32; ++lane) {
    for (uint32_t m = 0; m < 4; ++m) {
      const auto& from = *reinterpret_cast<const MatrixLoad*>(lanes[8 * m + lane / 4].value);
      const auto& to = *reinterpret_cast<const MatrixLoad*>(lanes[lane].value);
      std::memcpy(to.out + m, static_cast<const char*>(from.row) + lane % 4 * 4, 4);
    }
  }
}

inline void load_matrices(uint32_t (&out)[4], const void* row, CUEMU_LOCATION) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) die("load_matrices: a row must start at 16 bytes", &location);
  const MatrixLoad load{row, out};
  meet(~0u, reinterpret_cast<uint64_t>(&load), 0, &exchange_matrices, location);
}

struct Operands {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

template <class T>
float number(uint32_t pair, uint32_t which) {
  T x[2];
  std::memcpy(x, &pair, sizeof x);
  return static_cast<float>(x[which]);
}

// The last lane to come computes the product of all.
template <class T>
void multiply(Thread* lanes, uint32_t members) {
  if (members != ~0u) die("multiply_add without all 32 lanes of the warp");
  float a[16][16], b[16][8], d[16][8];
  const auto of = [&](uint32_t lane) -> const Operands& {
    return *reinterpret_cast<const Operands*>(lanes[lane].value);
  };
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const uint32_t g = lane / 4, t = 2 * (lane % 4);
    for (uint32_t e = 0; e < 2; ++e) {
      for (uint32_t r = 0; r < 4; ++r) a[g + 8 * (r % 2)][t + 8 * (r / 2) + e] = number<T>(of(lane).a[r], e);
      for (uint32_t r = 0; r < 2; ++r) b[t + 8 * r + e][g] = number<T>(of(lane).b[r], e);
      for (uint32_t r = 0; r < 2; ++r) d[g + 8 * r][t + e] = of(lane).d[2 * r + e];
    }
  }
  for (int i = 0; i < 16; ++i) {
    for (int k = 0; k < 16; ++k) {
      for (int j = 0; j < 8; ++j) d[i][j] += a[i][k] * b[k][j];
    }
  }
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const uint32_t g = lane / 4, t = 2 * (lane % 4);
    for (uint32_t r = 0; r < 4; ++r) of(lane).d[r] = d[g + 8 * (r / 2)][t + r % 2];
  }
}

template <class T>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, CUEMU_LOCATION) {
  const uint32_t b[2] = {b0, b1};
  const Operands operands{d, a, b};
  meet(~0u, reinterpret_cast<uint64_t>(&operands), 0, &multiply<T>, location);
}

inline uint32_t count_in(uint32_t* counter) { return (*counter)++; }

inline float exp2_fast(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.f : y;
}

}  // namespace cuemu
