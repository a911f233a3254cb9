// How alike the patches of each window of a grid are.
//
// The sum of the cosines of all pairs of unit vectors is (|their sum|^2 - the sum of their squares), so no pair is
// formed. A task owns a window: its patches are scaled to unit length in a buffer and added up. 6 P C FLOPs an image;
// each patch is read from memory once, and a few times more from the cache, which bounds it. Sums run over patches and
// channels in an order that depends on neither the window's position nor the threads, so windows with equal patches
// have equal results bit for bit.
#include "cpu/buffer.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "cpu/simd.h"

namespace ficoco {

void window_similarity_image(const WindowSimilarityParams& p) {
  constexpr double kLeast = 1e-8;
  const int64_t c = p.width;
  each(p.down * p.across, [&](int64_t window) {
    const int64_t patches = p.window * p.window, corner_row = window / p.across * p.window;
    const int64_t corner = corner_row * p.grid_width + window % p.across * p.window;
    FloatRows reader(p.tokens, c);
    Buffer<float> unit(p.window * c), sum(c);
    std::fill_n(sum.data(), c, 0.f);
    double own = 0.;
    for (int64_t line = 0; line < p.window; ++line) {
      const float* rows = reader.read(0, corner + line * p.grid_width, p.window);
      simd.unit_rows(rows, reader.stride(), p.window, c, kLeast, unit.data());
      simd.sum_rows(unit.data(), c, p.window, c, sum.data());
      for (int64_t i = 0; i < p.window; ++i) own += simd.dot(unit.data() + i * c, unit.data() + i * c, c);
    }
    const double pairs = static_cast<double>(patches) * static_cast<double>(patches - 1);
    p.similarity[window] = static_cast<float>((simd.sum_squares(sum.data(), c) - own) / pairs);
  });
}

}  // namespace ficoco
