// Merges every source into its targets.
//
// A task owns 32 survivors and adds what each receives in the order of the sources, in fp32: no atomics, and no order
// that depends on threads.
//
// Tokens are read once and written once, (N + M) C elements: bound by memory. 2 r k C FLOPs an image.
#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace ficoco {
namespace {

constexpr int64_t kBlock = 32;  // survivors of one task

// The edges of one image sorted by target, those of one target in the order of the sources.
struct Edges {
  std::vector<int64_t> start;  // (M + 1): edges of survivor j are order[start[j]..start[j + 1])
  std::vector<int64_t> order;  // (r k): edge e comes from source e / k
};

Edges sort_edges(const int64_t* targets, int64_t edges, int64_t survivors) {
  Edges out{std::vector<int64_t>(survivors + 1, 0), std::vector<int64_t>(edges)};
  for (int64_t e = 0; e < edges; ++e) ++out.start[targets[e] + 1];
  for (int64_t j = 0; j < survivors; ++j) out.start[j + 1] += out.start[j];
  std::vector<int64_t> next(out.start.begin(), out.start.end() - 1);
  for (int64_t e = 0; e < edges; ++e) out.order[next[targets[e]]++] = e;
  return out;
}

void write_source_map(const CompressParams& p) {
  std::fill_n(p.source_map, p.count, -1);
  for (int64_t j = 0; j < p.kept_count; ++j) p.source_map[p.kept[j]] = j;
  for (int64_t i = 0; i < p.r; ++i) {
    const float* weights = p.weights + i * p.k;
    const int64_t largest = std::max_element(weights, weights + p.k) - weights;  // the first of equals
    p.source_map[p.sources[i]] = p.k ? p.targets[i * p.k + largest] : -1;
  }
}

}  // namespace

void compress_image(const CompressParams& p) {
  const int64_t row_bytes = p.channels * size_of(p.tokens.dtype);
  const auto token = [&](int64_t i) {
    return static_cast<const char*>(p.tokens.data) + i * p.tokens.stride_n * size_of(p.tokens.dtype);
  };
  const auto size = [&](int64_t i) { return p.size ? p.size[i] : 1.f; };
  const Edges edges = sort_edges(p.targets, p.r * p.k, p.kept_count);
  write_source_map(p);
  each(ceil_div(p.kept_count, kBlock), [&](int64_t block) {
    const int64_t begin = block * kBlock, end = std::min(begin + kBlock, p.kept_count);
    std::vector<float> sum, incoming;
    for (int64_t j = begin; j < end; ++j) {
      char* out = static_cast<char*>(p.out) + j * row_bytes;
      float mass = size(p.kept[j]);
      const int64_t first = edges.start[j], last = edges.start[j + 1];
      if (first == last) {
        std::memcpy(out, token(p.kept[j]), row_bytes);
        p.out_size[j] = mass;
        continue;
      }
      sum.resize(p.channels);
      incoming.resize(p.channels);
      load(token(p.kept[j]), p.tokens.dtype, sum.data(), p.channels);
      const float own = p.size_weighted ? mass : 1.f;
      if (own != 1.f) {
        for (float& x : sum) x *= own;
      }
      float total = own;
      for (int64_t e = first; e < last; ++e) {
        const int64_t edge = edges.order[e], source = p.sources[edge / p.k];
        const float weight = p.weights[edge], moved = weight * size(source);
        const float share = p.size_weighted ? moved : weight;
        const float* x = reinterpret_cast<const float*>(token(source));
        if (p.tokens.dtype != Dtype::kFloat) {
          load(token(source), p.tokens.dtype, incoming.data(), p.channels);
          x = incoming.data();
        }
        simd.axpy(sum.data(), share, x, p.channels);
        total += share;
        mass += moved;
      }
      simd.divide(sum.data(), total, p.channels);
      store(sum.data(), p.tokens.dtype, out, p.channels);
      p.out_size[j] = mass;
    }
  });
}

}  // namespace ficoco
