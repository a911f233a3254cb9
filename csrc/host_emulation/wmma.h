// nvcuda::wmma: tensor-core products of tiles that the 32 lanes of a warp hold together.
//
// Element e of lane l is entry l * num_elements + e of the tile, row by row. The GPU's own arrangement is unspecified,
// so a kernel that relies on one is wrong there, and on this one too.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <type_traits>
#include "warp.h"
#define __CUDA_MMA_H__  // a later #include <mma.h> brings nothing

namespace nvcuda::wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };
namespace precision {
struct tf32;
}

template <class T>
struct stored {
  using type = T;
};
template <>
struct stored<precision::tf32> {
  using type = float;
};

template <class Use, int m, int n, int k, class T, class Layout = void>
struct fragment {
  static_assert((k == 16 && m * n == 256 && m % 8 == 0 && n % 8 == 0) ||
                    (std::is_same_v<T, precision::tf32> && m == 16 && n == 16 && k == 8) ||
                    (std::is_same_v<Use, accumulator> && m == 16 && n == 16 && k == 8),
                "no such tile: 16x16x16, 32x8x16, 8x32x16; 16x16x8 for tf32");
  static constexpr int kRows = std::is_same_v<Use, matrix_b> ? k : m;
  static constexpr int kColumns = std::is_same_v<Use, matrix_a> ? k : n;
  static constexpr int num_elements = kRows * kColumns / 32;
  typename stored<T>::type x[num_elements];
};

inline float __float_to_tf32(float value) {  // 10 bits of mantissa, ties away from zero
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return (bits & 0x7F800000u) == 0x7F800000u ? value : std::bit_cast<float>((bits + 0x1000u) & ~0x1FFFu);
}

template <class Fragment, class T>
void fill_fragment(Fragment& fragment, const T& value) {
  for (auto& element : fragment.x) element = static_cast<std::remove_reference_t<decltype(element)>>(value);
}

// Calls f(element, offset in memory) for what this lane holds.
template <class Fragment, class F>
void for_each_element(Fragment& fragment, unsigned stride, bool by_row, F f) {
  for (int e = 0; e < Fragment::num_elements; ++e) {
    const int entry = static_cast<int>(cuemu::current->lane()) * Fragment::num_elements + e;
    const unsigned row = entry / Fragment::kColumns, column = entry % Fragment::kColumns;
    f(fragment.x[e], by_row ? size_t{row} * stride + column : size_t{column} * stride + row);
  }
}

template <class T>
void check_tile(const T* pointer, unsigned stride, const char* name, const cuemu::Place& place) {
  if (reinterpret_cast<uintptr_t>(pointer) % 32 != 0) {
    cuemu::die(std::string(name) + ": a tile must start at a multiple of 32 bytes", &place);
  }
  if (stride * sizeof(T) % 16 != 0) {
    cuemu::die(std::string(name) + ": the stride must be a multiple of 16 bytes", &place);
  }
}

template <int kOperation>
void together(cuemu::Thread*, uint32_t members) {
  if (members != ~0u) cuemu::die("a wmma operation without all 32 lanes of the warp");
}

template <class Use, int m, int n, int k, class T, class Layout, class S>
void load_matrix_sync(fragment<Use, m, n, k, T, Layout>& to, const S* from, unsigned stride, CUEMU_PLACE) {
  static_assert(!std::is_void_v<Layout>, "loading an accumulator takes its layout in memory");
  check_tile(from, stride, "load_matrix_sync", place);
  cuemu::meet(~0u, 0, 0, &together<0>, place);
  for_each_element(to, stride, std::is_same_v<Layout, row_major>, [&](auto& x, size_t at) { x = from[at]; });
}
template <int m, int n, int k, class T, class S>
void load_matrix_sync(fragment<accumulator, m, n, k, T>& to, const S* from, unsigned stride, layout_t layout,
                      CUEMU_PLACE) {
  check_tile(from, stride, "load_matrix_sync", place);
  cuemu::meet(~0u, 0, 0, &together<0>, place);
  for_each_element(to, stride, layout == mem_row_major, [&](auto& x, size_t at) { x = from[at]; });
}
template <class S, int m, int n, int k, class T>
void store_matrix_sync(S* to, const fragment<accumulator, m, n, k, T>& from, unsigned stride, layout_t layout,
                       CUEMU_PLACE) {
  check_tile(to, stride, "store_matrix_sync", place);
  cuemu::meet(~0u, 0, 0, &together<1>, place);
  for_each_element(from, stride, layout == mem_row_major, [&](const auto& x, size_t at) { to[at] = x; });
}

template <class D, class A, class B, class C>
struct Operands {
  D* d;
  const A* a;
  const B* b;
  const C* c;
};

// The last lane to come computes the product of all: A and B as floats once, then rows that the compiler vectorises.
template <class D, class A, class B, class C>
void multiply(cuemu::Thread* lanes, uint32_t members) {
  together<2>(lanes, members);
  constexpr int kRows = D::kRows, kColumns = D::kColumns, kInner = A::kColumns;
  static_assert(A::kRows == kRows && B::kRows == kInner && B::kColumns == kColumns, "tiles of different shapes");
  float a[kRows * kInner], b[kInner * kColumns], d[kRows * kColumns];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& of = *reinterpret_cast<const Operands<D, A, B, C>*>(lanes[lane].value);
    for (int e = 0; e < A::num_elements; ++e) a[lane * A::num_elements + e] = static_cast<float>(of.a->x[e]);
    for (int e = 0; e < B::num_elements; ++e) b[lane * B::num_elements + e] = static_cast<float>(of.b->x[e]);
    for (int e = 0; e < C::num_elements; ++e) d[lane * C::num_elements + e] = static_cast<float>(of.c->x[e]);
  }
  for (int i = 0; i < kRows; ++i) {
    for (int k = 0; k < kInner; ++k) {
      for (int j = 0; j < kColumns; ++j) d[i * kColumns + j] += a[i * kInner + k] * b[k * kColumns + j];
    }
  }
  using Out = std::remove_reference_t<decltype(D{}.x[0])>;
  for (int lane = 0; lane < 32; ++lane) {
    const auto& of = *reinterpret_cast<const Operands<D, A, B, C>*>(lanes[lane].value);
    for (int e = 0; e < D::num_elements; ++e) of.d->x[e] = static_cast<Out>(d[lane * D::num_elements + e]);
  }
}

template <class D, class A, class B, class C>
void mma_sync(D& d, const A& a, const B& b, const C& c, CUEMU_PLACE) {
  const Operands<D, A, B, C> operands{&d, &a, &b, &c};
  cuemu::meet(~0u, reinterpret_cast<uint64_t>(&operands), 0, &multiply<D, A, B, C>, place);
}

}  // namespace nvcuda::wmma
