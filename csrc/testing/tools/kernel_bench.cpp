// Runs the CUDA launchers without torch or Python, for ncu and nsys, and prints times as JSON:
//
//     ficoco_kernel_bench --batch 8 --tokens 577 --heads 16 --width 64 --r 42 --dtype bf16 --iterations 50
//
// --op all (default), reduce, attention_stats, attention_stats_probs, filter, correlate or compress. --class-token 0
// for none. Every run is an NVTX range `ficoco::<op>`. Between two runs the level 2 cache is flushed; --warm 1 leaves
// it. Inputs are random. Each time is that of one call on the device, from its first kernel to the end of its last.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "testing/tools/layer.h"

#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#else  // no ranges
static void nvtxRangePushA(const char*) {}
static void nvtxRangePop() {}
#endif

namespace ficoco {
namespace {

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

class Pool {  // device memory until the end of the program
 public:
  ~Pool() {
    for (void* block : blocks_) cudaFree(block);
  }
  template <class T>
  T* take(int64_t count) {
    void* block = nullptr;
    check(cudaMalloc(&block, std::max<size_t>(static_cast<size_t>(count) * sizeof(T), 256)), "cudaMalloc");
    blocks_.push_back(block);
    return static_cast<T*>(block);
  }

 private:
  std::vector<void*> blocks_;
};

uint16_t to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Good for normal numbers, which is all that is drawn here.
uint16_t to_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude < 0x38800000) return static_cast<uint16_t>(sign);  // below the smallest normal number: 0
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13));
}

const void* random_input(Pool& pool, const Layer& layer, float shift, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(shift, 1.0f);
  const int64_t count = layer.inputs();
  std::vector<char> bytes(static_cast<size_t>(count * size_of(layer.dtype)));
  for (int64_t i = 0; i < count; ++i) {
    const float value = normal(generator);
    if (layer.dtype == Dtype::kFloat) {
      std::memcpy(&bytes[static_cast<size_t>(4 * i)], &value, 4);
    } else {
      const uint16_t narrow = layer.dtype == Dtype::kHalf ? to_half(value) : to_bfloat16(value);
      std::memcpy(&bytes[static_cast<size_t>(2 * i)], &narrow, 2);
    }
  }
  char* data = pool.take<char>(static_cast<int64_t>(bytes.size()));
  check(cudaMemcpy(data, bytes.data(), bytes.size(), cudaMemcpyHostToDevice), "cudaMemcpy");
  return data;
}

Memory allocate(Pool& pool, const Layer& l) {
  Memory m{};
  m.tokens = random_input(pool, l, 0.0f, 1);
  m.query = random_input(pool, l, 0.2f, 2);
  m.key = random_input(pool, l, 0.2f, 3);
  m.class_attention = pool.take<float>(l.batch * l.patches());
  m.patch_attention = pool.take<float>(l.batch * l.patches());
  m.redundancy = pool.take<float>(l.batch * l.patches());
  m.sources = pool.take<int64_t>(l.batch * l.r);
  m.kept = pool.take<int64_t>(l.batch * l.kept());
  m.targets = pool.take<int64_t>(l.batch * l.r * l.targets());
  m.weights = pool.take<float>(l.batch * l.r * l.targets());
  m.out = pool.take<char>(l.batch * l.kept() * l.channels() * size_of(l.dtype));
  m.out_size = pool.take<float>(l.batch * l.kept());
  m.source_map = pool.take<int64_t>(l.batch * l.tokens);
  return m;
}

struct Options {
  Layer layer;
  int64_t iterations = 50;
  bool warm = false;
  std::string op = "all", dtype = "bf16";
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i];
    if (i + 1 == argc) throw std::invalid_argument(name + " needs a value");
    const std::string value = argv[i + 1];
    const auto number = [&] { return static_cast<int64_t>(std::stoll(value)); };
    if (name == "--batch")
      options.layer.batch = number();
    else if (name == "--tokens")
      options.layer.tokens = number();
    else if (name == "--heads")
      options.layer.heads = number();
    else if (name == "--width")
      options.layer.width = number();
    else if (name == "--r")
      options.layer.r = number();
    else if (name == "--class-token")
      options.layer.first = number() != 0;
    else if (name == "--iterations")
      options.iterations = number();
    else if (name == "--warm")
      options.warm = number() != 0;
    else if (name == "--op")
      options.op = value;
    else if (name == "--dtype")
      options.dtype = value;
    else
      throw std::invalid_argument("unknown option " + name);
  }
  if (options.dtype == "fp32")
    options.layer.dtype = Dtype::kFloat;
  else if (options.dtype == "fp16")
    options.layer.dtype = Dtype::kHalf;
  else if (options.dtype != "bf16")
    throw std::invalid_argument("--dtype must be fp32, fp16 or bf16");
  choose_grid(options.layer);
  if (!options.layer.valid() || options.iterations < 1) throw std::invalid_argument("sizes that make no layer");
  return options;
}

using Call = std::function<cudaError_t(cudaStream_t)>;

std::string measure(const std::string& op, const Call& call, const Options& options, char* scratch, size_t flush,
                    cudaStream_t stream) {
  for (int i = 0; i < 3; ++i) check(call(stream), op.c_str());
  const int64_t launches = launch_count();
  check(call(stream), op.c_str());
  const int64_t each = launch_count() - launches;
  check(cudaStreamSynchronize(stream), op.c_str());
  cudaEvent_t start, end;
  check(cudaEventCreate(&start), "cudaEventCreate");
  check(cudaEventCreate(&end), "cudaEventCreate");
  std::vector<float> times;
  for (int64_t i = 0; i < options.iterations; ++i) {
    if (!options.warm) check(cudaMemsetAsync(scratch, static_cast<int>(i & 1), flush, stream), "cudaMemsetAsync");
    check(cudaEventRecord(start, stream), "cudaEventRecord");
    nvtxRangePushA(("ficoco::" + op).c_str());
    const cudaError_t error = call(stream);
    nvtxRangePop();
    check(error, op.c_str());
    check(cudaEventRecord(end, stream), "cudaEventRecord");
    check(cudaEventSynchronize(end), op.c_str());
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, start, end), "cudaEventElapsedTime");
    times.push_back(milliseconds);
  }
  cudaEventDestroy(start);
  cudaEventDestroy(end);
  std::sort(times.begin(), times.end());
  const size_t n = times.size();
  char line[256];
  std::snprintf(line, sizeof line,
                "{\"op\": \"%s\", \"median_ms\": %.5f, \"low_ms\": %.5f, \"high_ms\": %.5f, \"launches\": %lld}",
                op.c_str(), static_cast<double>(times[n / 2]), static_cast<double>(times[n / 10]),
                static_cast<double>(times[n - 1 - n / 10]), static_cast<long long>(each));
  return line;
}

void run(const Options& options) {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, 0), "no usable GPU");
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  Pool pool;
  const Layer& l = options.layer;
  const ReduceParams p = describe(l, allocate(pool, l));
  AttentionStatsParams probs = p.stats;
  probs.probs = true;
  size_t bytes = 0;
  for (const size_t one : {workspace_bytes(p), workspace_bytes(p.stats), workspace_bytes(probs),
                           workspace_bytes(p.filter), workspace_bytes(p.correlate)}) {
    bytes = std::max(bytes, one);
  }
  void* workspace = pool.take<char>(static_cast<int64_t>(bytes));
  const size_t flush = std::max<size_t>(4 * static_cast<size_t>(properties.l2CacheSize), size_t{1} << 28);
  char* scratch = options.warm ? nullptr : pool.take<char>(static_cast<int64_t>(flush));
  check(launch_reduce(p, workspace, stream), "reduce");  // what the single stages read is there from now on

  const std::vector<std::pair<std::string, Call>> calls = {
      {"reduce", [&](cudaStream_t s) { return launch_reduce(p, workspace, s); }},
      {"attention_stats", [&](cudaStream_t s) { return launch_attention_stats(p.stats, workspace, s); }},
      {"filter", [&](cudaStream_t s) { return launch_filter(p.filter, workspace, s); }},
      {"correlate", [&](cudaStream_t s) { return launch_correlate(p.correlate, workspace, s); }},
      {"compress", [&](cudaStream_t s) { return launch_compress(p.compress, s); }},
      {"attention_stats_probs", [&](cudaStream_t s) { return launch_attention_stats(probs, workspace, s); }},
  };
  std::string rows;
  for (const auto& [op, call] : calls) {
    if (options.op != "all" && options.op != op) continue;
    rows += (rows.empty() ? "\n  " : ",\n  ") + measure(op, call, options, scratch, flush, stream);
  }
  if (rows.empty()) throw std::invalid_argument("--op " + options.op + " is unknown");
  std::printf(
      "{\"gpu\": \"%s\", \"batch\": %lld, \"tokens\": %lld, \"heads\": %lld, \"width\": %lld, \"r\": %lld, "
      "\"k\": %lld, \"class_token\": %lld, \"dtype\": \"%s\", \"iterations\": %lld, \"warm\": %s, "
      "\"workspace_bytes\": %zu, \"rows\": [%s\n]}\n",
      properties.name, static_cast<long long>(l.batch), static_cast<long long>(l.tokens),
      static_cast<long long>(l.heads), static_cast<long long>(l.width), static_cast<long long>(l.r),
      static_cast<long long>(l.targets()), static_cast<long long>(l.first), options.dtype.c_str(),
      static_cast<long long>(options.iterations), options.warm ? "true" : "false", bytes, rows.c_str());
  cudaStreamDestroy(stream);
}

}  // namespace
}  // namespace ficoco

int main(int argc, char** argv) {
  try {
    ficoco::run(ficoco::parse(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "ficoco_kernel_bench: %s\n", error.what());
    return 1;
  }
  return 0;
}
