// Merges every source into its targets. A task owns a block of survivors and gathers what comes to each in the order of
// the sources, in fp32: no atomics, no order that depends on threads. Tokens are read once and written once, so it is
// bound by memory: (N + M) C elements, 2 r k C FLOPs an image.
#include <cstring>

#include "cpu/kernels.h"

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

void write_source_map(const CompressParams& p, int64_t b) {
  int64_t* map = p.source_map + b * p.count;
  std::fill_n(map, p.count, -1);
  for (int64_t j = 0; j < p.kept_count; ++j) map[p.kept[b * p.kept_count + j]] = j;
  for (int64_t i = 0; i < p.r; ++i) {
    const int64_t edge = (b * p.r + i) * p.k;
    int64_t largest = 0;
    for (int64_t t = 1; t < p.k; ++t) largest = p.weights[edge + t] > p.weights[edge + largest] ? t : largest;
    map[p.sources[b * p.r + i]] = p.k ? p.targets[edge + largest] : -1;
  }
}

}  // namespace

void compress_cpu(const CompressParams& p) {
  const int64_t blocks = ceil_div(p.kept_count, kBlock), bytes = static_cast<int64_t>(size_of(p.tokens.dtype));
  std::vector<Edges> edges(p.batch);
  each(p.batch, [&](int64_t b) {
    edges[b] = sort_edges(p.targets + b * p.r * p.k, p.r * p.k, p.kept_count);
    write_source_map(p, b);
  });
  each(p.batch * blocks, [&](int64_t task) {
    const int64_t b = task / blocks, begin = task % blocks * kBlock, end = std::min(begin + kBlock, p.kept_count);
    const auto token = [&](int64_t i) {
      return static_cast<const char*>(p.tokens.data) + (b * p.tokens.stride_b + i * p.tokens.stride_n) * bytes;
    };
    const auto size = [&](int64_t i) { return p.size ? p.size[b * p.count + i] : 1.f; };
    std::vector<float> sum, incoming;
    for (int64_t j = begin; j < end; ++j) {
      const int64_t kept = p.kept[b * p.kept_count + j];
      char* out = static_cast<char*>(p.out) + (b * p.kept_count + j) * p.channels * bytes;
      float mass = size(kept);
      const int64_t first = edges[b].start[j], last = edges[b].start[j + 1];
      if (first == last) {
        std::memcpy(out, token(kept), p.channels * bytes);
        p.out_size[b * p.kept_count + j] = mass;
        continue;
      }
      sum.resize(p.channels);
      incoming.resize(p.channels);
      load(token(kept), p.tokens.dtype, sum.data(), p.channels);
      const float own = p.size_weighted ? mass : 1.f;
      if (own != 1.f) {
        for (float& x : sum) x *= own;
      }
      float total = own;
      for (int64_t e = first; e < last; ++e) {
        const int64_t edge = edges[b].order[e], source = p.sources[b * p.r + edge / p.k];
        const float weight = p.weights[b * p.r * p.k + edge], moved = weight * size(source);
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
      p.out_size[b * p.kept_count + j] = mass;
    }
  });
}

}  // namespace ficoco
