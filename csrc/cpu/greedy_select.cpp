// Tokens picked one by one, each the one with the largest gain; the objectives differ in the gain.
//
// All cosines of an image are computed once, half of them: N^2 D FLOPs, bound by arithmetic, nearly all of the time. A
// pick then reads one row of them; coverage some more, see greedy_cover.cpp.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/choose.h"
#include "cpu/coverage.h"
#include "cpu/kernels.h"
#include "cpu/pair_cosines.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "cpu/simd.h"

namespace ficoco {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// What every objective works on: the real tokens of an image, N of them.
struct Candidates {
  const GreedySelectParams& p;
  const float* cosine;      // (N, N)
  std::vector<char> free;   // not picked
  std::vector<float> gain;  // scratch

  const float* row(int64_t j) const { return cosine + j * p.tokens; }
  float saliency(int64_t j) const { return p.saliency ? p.saliency[j] : 1.f; }

  // The free token with the largest value, the lowest of equal ones.
  int64_t best(const float* value) const {
    int64_t found = -1;
    for (int64_t j = 0; j < p.tokens; ++j) {
      if (free[j] && (found < 0 || value[j] > value[found])) found = j;
    }
    return found;
  }

  void pick(int64_t step, int64_t j, float gained) {
    p.order[step] = j;
    p.gains[step] = gained;
    free[j] = 0;
  }
};

// The largest cosine of each token with another one; -1 if it is alone.
void nearest_neighbours(const Candidates& c, float* nearest) {
  each(c.p.tokens, [&](int64_t j) {
    const float* row = c.row(j);
    float best = -kInfinity;
    for (int64_t i = 0; i < c.p.tokens; ++i) {
      if (i != j && row[i] > best) best = row[i];
    }
    nearest[j] = best == -kInfinity ? -1.f : best;
  });
}

void by_distance(Candidates& c) {
  const GreedySelectParams& p = c.p;
  const int64_t n = p.tokens;
  const bool mmr = p.objective == Objective::kMmr;
  std::vector<float> nearest(n, -kInfinity);
  if (p.count > 0 && !mmr) nearest_neighbours(c, nearest.data());
  for (int64_t step = 0; step < p.count; ++step) {
    for (int64_t j = 0; j < n; ++j) {
      const float far = mmr ? p.trade * c.saliency(j) : c.saliency(j) * (1.f - nearest[j]);
      c.gain[j] = mmr && step > 0 ? far - (1.f - p.trade) * nearest[j] : far;
    }
    const int64_t picked = c.best(mmr && step == 0 ? p.saliency : c.gain.data());
    if (step == 0) std::fill(nearest.begin(), nearest.end(), -kInfinity);
    const float* row = c.row(picked);
    for (int64_t j = 0; j < n; ++j) nearest[j] = row[j] > nearest[j] ? row[j] : nearest[j];
    c.pick(step, picked, c.gain[picked]);
  }
}

void by_coverage(const Candidates& c) {
  const GreedySelectParams& p = c.p;
  Buffer<float> covered(p.tokens);
  std::fill_n(covered.data(), p.tokens, 0.f);
  pick_by_coverage({c.cosine, p.tokens, p.tokens, p.tokens, p.count, p.saliency, p.order, p.gains}, c.free, covered);
}

void by_determinant(Candidates& c) {
  const GreedySelectParams& p = c.p;
  const int64_t n = p.tokens;
  std::vector<float> factor(n), saliency(n);
  for (int64_t j = 0; j < n; ++j) {
    saliency[j] = c.saliency(j);
    factor[j] = saliency[j] * c.row(j)[j] * saliency[j];
  }
  Buffer<float> columns(p.count * n);  // of the Cholesky factor
  float first = 0.f;
  for (int64_t step = 0; step < p.count; ++step) {
    int64_t picked = c.best(factor.data());
    if (step == 0) first = factor[picked];
    const bool exhausted = factor[picked] < kExhausted * first || factor[picked] <= 0.f;
    if (exhausted) picked = c.best(saliency.data());
    c.pick(step, picked, factor[picked]);
    float* column = columns.data() + step * n;
    if (exhausted) {  // and so will be every further step
      std::fill_n(column, n, 0.f);
      continue;
    }
    const float *row = c.row(picked), own = saliency[picked];
    for (int64_t j = 0; j < n; ++j) column[j] = own * row[j] * saliency[j];
    for (int64_t s = 0; s < step; ++s) simd.axpy(column, -columns[s * n + picked], columns.data() + s * n, n);
    simd.divide(column, std::sqrt(std::max(factor[picked], kSmallestFactor)), n);
    for (int64_t j = 0; j < n; ++j) factor[j] -= column[j] * column[j];
  }
}

Fault find_fault(const GreedySelectParams& p, const float* unit) {
  int64_t real = 0;
  Fault found = Fault::kNone;
  for (int64_t j = 0; j < p.tokens; ++j) {
    if (p.mask && !p.mask[j]) continue;
    ++real;
    if (p.saliency && !(p.saliency[j] >= 0.f && p.saliency[j] < kInfinity)) found = std::max(found, Fault::kSaliency);
    if (simd.any_nan(unit + j * p.width, p.width)) found = std::max(found, Fault::kFeatureNotFinite);
  }
  return std::max(found, real < p.count ? Fault::kTooFewTokens : Fault::kNone);
}

// Picks among p.tokens tokens that are all real.
void pick(const GreedySelectParams& p, const float* unit) {
  const int64_t n = p.tokens;
  Buffer<float> cosine(n * n);
  pair_cosines(unit, n, p.width, cosine.data());
  Candidates candidates{p, cosine.data(), std::vector<char>(n, 1), std::vector<float>(n)};
  switch (p.objective) {
    case Objective::kMaxMin:
    case Objective::kMmr: by_distance(candidates); break;
    case Objective::kCoverage: by_coverage(candidates); break;
    case Objective::kLogDet: by_determinant(candidates); break;
  }
}

}  // namespace

Fault greedy_select_image(const GreedySelectParams& p) {
  Buffer<float> unit = unit_keys(p.features, p.tokens, p.width);
  const Fault fault = find_fault(p, unit.data());
  if (fault != Fault::kNone || p.count == 0) return fault;
  if (!p.mask) {
    pick(p, unit.data());
    return Fault::kNone;
  }
  // Real tokens move to the front, so that sums over tokens add the same numbers in the same order whatever is hidden.
  std::vector<int64_t> real;
  std::vector<float> saliency;
  for (int64_t j = 0; j < p.tokens; ++j) {
    if (!p.mask[j]) continue;
    std::copy_n(unit.data() + j * p.width, p.width, unit.data() + real.size() * p.width);
    if (p.saliency) saliency.push_back(p.saliency[j]);
    real.push_back(j);
  }
  GreedySelectParams among = p;
  among.tokens = static_cast<int64_t>(real.size());
  among.mask = nullptr;
  if (p.saliency) among.saliency = saliency.data();
  pick(among, unit.data());
  for (int64_t step = 0; step < p.count; ++step) p.order[step] = real[p.order[step]];
  return Fault::kNone;
}

}  // namespace ficoco
