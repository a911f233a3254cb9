// Bytes alone decide most of ToMe's matching, where the processor multiplies them: keys of every sort at every size,
// each task screened or honestly refused, against products in double. Without torch or Python, under the sanitizers.
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "cpu/nearest_bytes.h"
#include "cpu/simd.h"

#ifdef FICOCO_VNNI

namespace ficoco {
namespace {

constexpr float kUntouched = -std::numeric_limits<float>::infinity();
int failures = 0;

void expect(bool holds, const char* what, int64_t tokens, int64_t width) {
  if (holds) return;
  std::fprintf(stderr, "FAILED: %s, %ld tokens of width %ld\n", what, static_cast<long>(tokens),
               static_cast<long>(width));
  ++failures;
}

// Unit keys around a common direction; `spread` 0: all the same.
std::vector<float> keys(int64_t tokens, int64_t width, float spread) {
  std::mt19937 generator(static_cast<unsigned>(tokens * 4099 + width));
  std::normal_distribution<float> normal;
  std::vector<float> common(width), metric(tokens * width);
  for (float& x : common) x = normal(generator);
  for (int64_t i = 0; i < tokens; ++i) {
    for (int64_t c = 0; c < width; ++c) metric[i * width + c] = common[c] + spread * normal(generator);
  }
  simd.unit_rows(metric.data(), width, tokens, width, 1e-12, metric.data());
  return metric;
}

double dot(const float* x, const float* y, int64_t width) {
  double sum = 0;
  for (int64_t c = 0; c < width; ++c) sum += static_cast<double>(x[c]) * y[c];
  return sum;
}

void test(int64_t tokens, int64_t width, float spread, bool screens, int64_t first_even = 2, int64_t first_odd = 1) {
  const std::vector<float> metric = keys(tokens, width, spread);
  const Side even(first_even, tokens), odd(first_odd, tokens);
  std::vector<float> best(even.count, kUntouched);
  std::vector<int32_t> nearest(even.count, -1);
  const ByteScreen screen(metric.data(), width, even, odd);
  for (int64_t begin = 0; begin < even.count; begin += ByteScreen::kTask) {
    const int64_t count = std::min(ByteScreen::kTask, even.count - begin);
    expect(screen.nearest(begin, count, best.data(), nearest.data()) == screens,
           screens ? "a task was not screened" : "a task was screened", tokens, width);
  }
  for (int64_t i = 0; i < even.count; ++i) {
    if (!screens) {
      expect(best[i] == kUntouched && nearest[i] == -1, "a refused task wrote", tokens, width);
      continue;
    }
    const float* x = metric.data() + even.token(i) * width;
    double most = -2;
    for (int64_t j = 0; j < odd.count; ++j) most = std::max(most, dot(x, metric.data() + odd.token(j) * width, width));
    const bool known = nearest[i] >= 0 && nearest[i] < odd.count;
    expect(known, "no nearest token", tokens, width);
    if (!known) continue;
    const double found = dot(x, metric.data() + odd.token(nearest[i]) * width, width);
    const double rounding = width * 0x1p-23;
    expect(std::abs(best[i] - found) <= rounding, "not the product of the pair", tokens, width);
    expect(found >= most - rounding, "not the nearest token", tokens, width);
  }
}

int run() {
  if (!ByteScreen::suits(64)) {
    std::printf("skipped: this processor has no AVX-512 VNNI\n");
    return 77;
  }
  for (const int64_t tokens : {4, 5, 35, 64, 100, 197, 577}) {
    for (const int64_t width : {16, 17, 31, 64, 72, 80, 128}) test(tokens, width, 1.f, true);
  }
  test(100, 72, 1.f, true, 0);
  test(100, 72, 1.f, true, 2, 3);
  test(2881, 64, 1.f, true);
  test(577, 64, 0.f, false);  // a blank picture
  test(577, 64, 1e-4f, false);
  if (failures == 0) std::printf("ok\n");
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace ficoco

int main() { return ficoco::run(); }

#else

#include <cstdio>

int main() {
  std::printf("skipped: this compiler does not build the screen\n");
  return 77;
}

#endif
