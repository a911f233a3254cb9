// The launchers on the host emulation, without torch or Python: one small layer through every stage, against the same
// mathematics written out in double; and the whole reduction against its stages, bit for bit.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "testing/tools/layer.h"

namespace ficoco {
namespace {

int failures = 0;

void expect(bool holds, const char* what) {
  if (!holds) {
    std::fprintf(stderr, "FAILED: %s\n", what);
    ++failures;
  }
}

template <class T>
void expect_close(const std::vector<float>& got, const std::vector<T>& wanted, const char* what) {
  double largest = 1e-30, error = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(wanted[i])));
    const double off = std::abs(static_cast<double>(got[i]) - static_cast<double>(wanted[i]));
    error = std::isnan(off) ? INFINITY : std::max(error, off);
  }
  expect(error <= 1e-5 * largest, what);
}

struct Results {  // start as NaN and -1, which show what a launcher did not write
  explicit Results(const Layer& l)
      : class_attention(l.batch * l.patches(), NAN),
        patch_attention(class_attention),
        redundancy(class_attention),
        weights(l.batch * l.r * l.targets(), NAN),
        out_size(l.batch * l.kept(), NAN),
        out(l.batch * l.kept() * l.channels(), NAN),
        sources(l.batch * l.r, -1),
        kept(l.batch * l.kept(), -1),
        targets(weights.size(), -1),
        source_map(l.batch * l.tokens, -2) {}

  Memory over(const std::vector<float>& x, const std::vector<float>& q, const std::vector<float>& k) {
    return {x.data(),          q.data(),          k.data(),        class_attention.data(), patch_attention.data(),
            redundancy.data(), weights.data(),    out_size.data(), sources.data(),         kept.data(),
            targets.data(),    source_map.data(), out.data()};
  }
  bool operator==(const Results& other) const {
    return class_attention == other.class_attention && patch_attention == other.patch_attention &&
           redundancy == other.redundancy && weights == other.weights && out_size == other.out_size &&
           out == other.out && sources == other.sources && kept == other.kept && targets == other.targets &&
           source_map == other.source_map;
  }

  std::vector<float> class_attention, patch_attention, redundancy, weights, out_size, out;
  std::vector<int64_t> sources, kept, targets, source_map;
};

std::vector<float> random_values(const Layer& l, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.2f, 1.0f);
  std::vector<float> values(static_cast<size_t>(l.inputs()));
  for (float& value : values) value = normal(generator);
  return values;
}

struct Workspace {  // as the launchers want it
  explicit Workspace(size_t bytes) : memory(bytes + 256, 0x7f) {}
  void* data() {
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    return reinterpret_cast<void*>((address + 255) / 256 * 256);
  }
  std::vector<unsigned char> memory;
};

// One image by the equations of ficoco_ext.ops.reference.
void check_image(const Layer& l, int64_t b, const std::vector<float>& x, const std::vector<float>& q,
                 const std::vector<float>& k, const Results& got) {
  const int64_t n = l.tokens, c = l.channels(), f = l.first, p = l.patches(), m = l.kept(), count = l.targets();
  const auto element = [&](const std::vector<float>& t, int64_t i, int64_t j) {
    return static_cast<double>(t[static_cast<size_t>((b * n + i) * c + j)]);
  };
  std::vector<double> attn(static_cast<size_t>(n * n));
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t e = 0; e < c; ++e) sum += element(q, i, e) * element(k, j, e);
      attn[static_cast<size_t>(i * n + j)] =
          sum / std::sqrt(static_cast<double>(l.width)) / static_cast<double>(l.heads);
    }
  }
  const auto slice = [&](const auto& values, int64_t each) {
    return std::vector(values.begin() + b * each, values.begin() + (b + 1) * each);
  };
  std::vector<double> cls(static_cast<size_t>(p)), patch(cls);
  for (int64_t i = 0; i < p; ++i) {
    cls[static_cast<size_t>(i)] = attn[static_cast<size_t>(i + f)];
    for (int64_t j = 0; j < p; ++j) patch[static_cast<size_t>(i)] += attn[static_cast<size_t>((i + f) * n + j + f)];
    patch[static_cast<size_t>(i)] /= static_cast<double>(p);
  }
  expect_close(slice(got.class_attention, p), cls, "class attention");
  expect_close(slice(got.patch_attention, p), patch, "patch attention");

  const auto norm = [](const std::vector<double>& v) {
    return std::sqrt(std::inner_product(v.begin(), v.end(), v.begin(), 0.0));
  };
  const double patch_norm = norm(patch), class_norm = norm(cls);
  std::vector<double> score(static_cast<size_t>(p));
  for (size_t i = 0; i < score.size(); ++i) score[i] = 0.65 * patch[i] / patch_norm - 0.35 * cls[i] / class_norm;
  for (int64_t y = 0; y + 1 < l.grid_height; y += 2) {
    for (int64_t z = 0; z + 1 < l.grid_width; z += 2) {
      const int64_t corner = y * l.grid_width + z;
      int64_t best = corner;
      for (const int64_t cell : {corner + 1, corner + l.grid_width, corner + l.grid_width + 1}) {
        if (score[static_cast<size_t>(cell)] > score[static_cast<size_t>(best)]) best = cell;
      }
      double& high = score[static_cast<size_t>(best)];
      high = high > 0 ? high * 2 : high / 2;
    }
  }
  expect_close(slice(got.redundancy, p), score, "redundancy");
  std::vector<int64_t> order(static_cast<size_t>(p));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t i, int64_t j) { return score[static_cast<size_t>(i)] > score[static_cast<size_t>(j)]; });
  std::vector<int64_t> sources(order.begin(), order.begin() + l.r), kept(order.begin() + l.r, order.end());
  std::sort(sources.begin(), sources.end());
  std::sort(kept.begin(), kept.end());
  for (int64_t& token : sources) token += f;
  for (int64_t& token : kept) token += f;
  if (f) kept.insert(kept.begin(), 0);
  expect(slice(got.sources, l.r) == sources, "sources");
  expect(slice(got.kept, m) == kept, "kept");

  std::vector<double> mass(static_cast<size_t>(m), 1.0), out(static_cast<size_t>(m * c));
  for (int64_t j = 0; j < m; ++j) {
    for (int64_t e = 0; e < c; ++e) out[static_cast<size_t>(j * c + e)] = element(x, kept[static_cast<size_t>(j)], e);
  }
  std::vector<int64_t> targets;
  std::vector<double> weights;
  for (const int64_t source : sources) {
    const auto value = [&](int64_t j) { return attn[static_cast<size_t>(source * n + kept[static_cast<size_t>(j)])]; };
    std::vector<int64_t> falling(static_cast<size_t>(m - f));
    std::iota(falling.begin(), falling.end(), f);
    std::stable_sort(falling.begin(), falling.end(), [&](int64_t i, int64_t j) { return value(i) > value(j); });
    double total = 0;
    for (int64_t t = 0; t < count; ++t) total += std::exp(value(falling[static_cast<size_t>(t)]) - value(falling[0]));
    for (int64_t t = 0; t < count; ++t) {
      const int64_t j = falling[static_cast<size_t>(t)];
      const double weight = std::exp(value(j) - value(falling[0])) / total;
      targets.push_back(j);
      weights.push_back(weight);
      mass[static_cast<size_t>(j)] += weight;
      for (int64_t e = 0; e < c; ++e) out[static_cast<size_t>(j * c + e)] += weight * element(x, source, e);
    }
  }
  for (int64_t j = 0; j < m; ++j) {
    for (int64_t e = 0; e < c; ++e) out[static_cast<size_t>(j * c + e)] /= mass[static_cast<size_t>(j)];
  }
  expect(slice(got.targets, l.r * count) == targets, "targets");
  expect_close(slice(got.weights, l.r * count), weights, "weights");
  expect_close(slice(got.out_size, m), mass, "sizes");
  expect_close(slice(got.out, m * c), out, "merged tokens");
  const std::vector<int64_t> holders = slice(got.source_map, n);
  for (int64_t j = 0; j < m; ++j) {
    expect(holders[static_cast<size_t>(kept[static_cast<size_t>(j)])] == j, "source map of a survivor");
  }
  for (int64_t i = 0; i < l.r; ++i) {
    const int64_t source = sources[static_cast<size_t>(i)];
    expect(holders[static_cast<size_t>(source)] == targets[static_cast<size_t>(i * count)], "source map of a source");
  }
}

void test(const Layer& l) {
  const std::vector<float> x = random_values(l, 1), q = random_values(l, 2), k = random_values(l, 3);
  Results staged(l), whole(l);
  const ReduceParams p = describe(l, staged.over(x, q, k)), w = describe(l, whole.over(x, q, k));
  Workspace a(workspace_bytes(p.stats)), b(workspace_bytes(p.filter)), c(workspace_bytes(p.correlate));
  Workspace d(workspace_bytes(w));
  const int64_t before = launch_count();
  expect(launch_attention_stats(p.stats, a.data(), nullptr) == cudaSuccess, "launch_attention_stats");
  expect(launch_filter(p.filter, b.data(), nullptr) == cudaSuccess, "launch_filter");
  expect(launch_correlate(p.correlate, c.data(), nullptr) == cudaSuccess, "launch_correlate");
  expect(launch_compress(p.compress, nullptr) == cudaSuccess, "launch_compress");
  const int64_t between = launch_count();
  expect(between > before, "the stages launch kernels");
  for (int64_t image = 0; image < l.batch; ++image) check_image(l, image, x, q, k, staged);
  expect(launch_reduce(w, d.data(), nullptr) == cudaSuccess, "launch_reduce");
  expect(launch_count() - between <= 4, "a whole reduction takes at most four launches");
  expect(staged == whole, "the whole reduction is its stages bit for bit");
}

}  // namespace
}  // namespace ficoco

int main() {
  ficoco::Layer layer;
  layer.dtype = ficoco::Dtype::kFloat;
  layer.batch = 2;
  layer.heads = 3;
  layer.width = 8;
  layer.tokens = 25;
  layer.r = 7;
  ficoco::choose_grid(layer);
  ficoco::test(layer);
  layer.tokens = 1 + 12 * 44;  // two targets for each source
  layer.r = 20;
  layer.batch = 1;
  ficoco::choose_grid(layer);
  ficoco::test(layer);
  std::printf(ficoco::failures ? "%d checks failed\n" : "all checks passed\n", ficoco::failures);
  return ficoco::failures != 0;
}
