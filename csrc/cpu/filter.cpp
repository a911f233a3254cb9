// The r most redundant patches: scores, local penalty on the original grid, selection.
//
// O(P) and a partial selection. Reads 12 P bytes, writes 8 N.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/choose.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace ficoco {
namespace {

constexpr double kTiny = 1e-12;

void add_term(const float* scores, float weight, const FilterParams& p, float* redundancy) {
  if (weight == 0.f) return;  // a term that has no weight is not read
  const double norm = p.normalize ? std::max(std::sqrt(simd.sum_squares(scores, p.patches)), kTiny) : 1.;
  simd.axpy(redundancy, static_cast<float>(weight / norm), scores, p.patches);
}

void local_penalty(const FilterParams& p) {
  float* redundancy = p.redundancy;
  const int64_t rows = p.grid_height / p.window, columns = p.grid_width / p.window;
  std::vector<int64_t> best(rows * columns, -1), best_id(rows * columns);
  for (int64_t i = 0; i < p.patches; ++i) {
    const int64_t id = p.ids ? p.ids[i] : i;
    const int64_t row = id / p.grid_width / p.window, column = id % p.grid_width / p.window;
    if (row >= rows || column >= columns) continue;  // does not fill a window
    int64_t& held = best[row * columns + column];
    const bool higher = held < 0 || redundancy[i] > redundancy[held];
    const bool earlier = held >= 0 && redundancy[i] == redundancy[held] && id < best_id[row * columns + column];
    if (higher || earlier) {
      held = i;
      best_id[row * columns + column] = id;
    }
  }
  for (const int64_t i : best) {
    if (i >= 0) redundancy[i] = redundancy[i] > 0.f ? redundancy[i] * p.penalty : redundancy[i] / p.penalty;
  }
}

}  // namespace

Fault filter_image(const FilterParams& p) {
  std::fill_n(p.redundancy, p.patches, 0.f);
  add_term(p.patch_attention, p.lam, p, p.redundancy);
  add_term(p.class_attention, p.lam - 1.f, p, p.redundancy);
  if (p.penalty != 1.f) local_penalty(p);
  bool finite = true;
  for (int64_t i = 0; i < p.patches; ++i) finite &= std::isfinite(p.redundancy[i]);
  if (!finite) return Fault::kScoreNotFinite;
  std::vector<uint64_t> order(p.patches);
  for (int64_t i = 0; i < p.patches; ++i) order[i] = falling_rank(p.redundancy[i], i);
  if (p.r > 0) std::nth_element(order.begin(), order.begin() + (p.r - 1), order.end());
  std::vector<char> leaves(p.patches, 0);
  for (int64_t i = 0; i < p.r; ++i) leaves[order[i] & 0xffffffffu] = 1;
  int64_t *source = p.sources, *kept = p.kept;
  if (p.first) *kept++ = 0;
  for (int64_t i = 0; i < p.patches; ++i) *(leaves[i] ? source : kept)++ = i + p.first;
  return Fault::kNone;
}

}  // namespace ficoco
