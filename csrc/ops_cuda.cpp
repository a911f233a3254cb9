// The operators on CUDA tensors: check, allocate, launch on the current stream. No kernel code; device and stream come
// from c10, so that the file compiles against a torch with or without CUDA.
//
// With FICOCO_EMULATED the same code serves CPU tensors in namespace ficoco_emu: the tests run the kernels on the host.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "calls.h"
#include "checks.h"
#include "images.h"
#include "launch.h"

#if __has_include(<nvtx3/nvToolsExt.h>) && !defined(FICOCO_EMULATED)
#include <nvtx3/nvToolsExt.h>
#define FICOCO_NVTX 1
#endif

#ifdef FICOCO_EMULATED
#define FICOCO_LIBRARY ficoco_emu
#define FICOCO_DEVICE CPU
#else
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>
#define FICOCO_LIBRARY ficoco
#define FICOCO_DEVICE CUDA
#endif

namespace ficoco {
namespace {

using at::Tensor;

#ifndef FICOCO_EMULATED
// Before torch 2.11 or so a c10::Stream has no native handle; libtorch_cuda then has a C function for it.
template <class Stream>
cudaStream_t handle(const Stream& stream) {
  if constexpr (requires { stream.native_handle(); }) {
    return static_cast<cudaStream_t>(stream.native_handle());
  } else {
    static const auto get = [] {
      void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
      return library
                 ? reinterpret_cast<int32_t (*)(int32_t, void**)>(dlsym(library, "aoti_torch_get_current_cuda_stream"))
                 : nullptr;
    }();
    TORCH_CHECK(get, "ficoco_ext: this torch does not tell its current CUDA stream; upgrade torch");
    void* out = nullptr;
    TORCH_CHECK(get(stream.device_index(), &out) == 0, "ficoco_ext: torch could not tell its current CUDA stream");
    return static_cast<cudaStream_t>(out);
  }
}
#endif

// The device and the stream that an operator runs on, for as long as it lives.
class Place {
 public:
#ifdef FICOCO_EMULATED
  explicit Place(const Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
#else
  explicit Place(const Tensor& on)
      : guard_(on.device()), stream_(handle(c10::impl::VirtualGuardImpl(on.device().type()).getStream(on.device()))) {}
  cudaStream_t stream() const { return stream_; }

 private:
  c10::DeviceGuard guard_;
  cudaStream_t stream_;
#endif
};

// A range named ficoco::<op> in a timeline of nsys, for the time on the host.
class Range {
 public:
  explicit Range(const char* op) {
#ifdef FICOCO_NVTX
    nvtxRangePushA((std::string("ficoco::") + op).c_str());
#else
    (void)op;
#endif
  }
  ~Range() {
#ifdef FICOCO_NVTX
    nvtxRangePop();
#endif
  }
  Range(const Range&) = delete;
};

void check_launch(const char* op, cudaError_t error) {
  if (error == cudaSuccess) return;
  const bool foreign = error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction;
  TORCH_CHECK(false, "ficoco::", op, ": the kernel was not launched: ", cudaGetErrorString(error),
              foreign ? "; rebuild for this GPU: FICOCO_CUDA_ARCHS=<its compute capability, such as 90> pip install "
                        "--force-reinstall --no-deps ."
                      : "");
}

int64_t batch_of(const ReduceParams& p) { return p.filter.batch; }
template <class Params>
int64_t batch_of(const Params& p) {
  return p.batch;
}

ReduceParams image(ReduceParams p, int64_t b, int64_t count) {
  p.map ? void(p.map_stats = image(p.map_stats, b, count)) : void(p.stats = image(p.stats, b, count));
  p.filter = image(p.filter, b, count);
  p.correlate = image(p.correlate, b, count);
  p.compress = image(p.compress, b, count);
  return p;
}

// Gives `launch` as many images as one grid has room for, a workspace and the stream, until there are no more.
template <class Params, class Launch>
void run(const char* op, const Tensor& like, const Params& params, const Launch& launch) {
  const Range range(op);
  const Place place(like);
  const int64_t batch = batch_of(params);
  for (int64_t b = 0; b < batch; b += kMaxImages) {
    const Params some = image(params, b, std::min(kMaxImages, batch - b));
    const size_t bytes = workspace_bytes(some);
    FICOCO_VALUE(bytes < kUncountable, op, "the tensors", "of sizes whose product can be counted in bytes", "larger",
                 "split the batch");
    Tensor workspace;
    if (bytes) workspace = at::empty({static_cast<int64_t>(bytes)}, like.options().dtype(at::kByte));
    check_launch(op, launch(some, bytes ? workspace.mutable_data_ptr() : nullptr, place.stream()));
  }
}

// Grids have room for them.
void check_grid(const char* op, const char* argument, int64_t heads, int64_t tokens, int64_t width) {
  constexpr const char* remedy = "use the CPU, where there is no such limit";
  FICOCO_VALUE(heads <= kMaxHeads, op, argument, check::text("of at most ", kMaxHeads, " heads on a GPU"), heads,
               remedy);
  FICOCO_VALUE(tokens <= kMaxTokens, op, argument, check::text("of at most ", kMaxTokens, " tokens on a GPU"), tokens,
               remedy);
  FICOCO_VALUE(width <= kMaxChannels / std::max<int64_t>(heads, 1), op, argument,
               check::text("of at most ", kMaxChannels, " channels on a GPU, all heads together"),
               check::text(heads, " heads of ", width), remedy);
}

void check_grid(const StatsCall& call) {
  check_grid("attention_stats", "query", call.params.query.heads, call.params.tokens, call.params.width);
}

void check_grid(const MapStatsCall& call) {
  check_grid("attention_stats", "attn", call.params.attn.heads, call.params.tokens, 0);
}

void check_grid(const CorrelateCall& call) {
  const CorrelateParams& p = call.params;
  const bool map = p.by == Correlation::kMap;
  check_grid("correlate",
             map                         ? "attn"
             : p.by == Correlation::kKey ? "key"
                                         : "query",
             (map                         ? p.attn
              : p.by == Correlation::kKey ? p.key
                                          : p.query)
                 .heads,
             p.tokens, map ? 0 : p.width);
}

void check_grid(const CompressCall& call) { check_grid("compress", "tokens", 1, call.params.count, 0); }

template <class Call>
std::tuple<Tensor, Tensor> run_stats(const Tensor& like, const Call& call) {
  check_grid(call);
  run("attention_stats", like, call.params,
      [](const auto& p, void* workspace, cudaStream_t stream) { return launch_attention_stats(p, workspace, stream); });
  return {call.class_attention, call.patch_attention};
}

std::tuple<Tensor, Tensor> attention_stats(const Tensor& query, const Tensor& key, double scale, bool class_token,
                                           bool probs, bool column, bool patches) {
  return run_stats(query, stats_call(query, key, scale, class_token, probs, column, patches));
}

std::tuple<Tensor, Tensor> attention_stats_map(const Tensor& attn, bool class_token, bool column, bool patches) {
  return run_stats(attn, stats_call(attn, class_token, column, patches));
}

void check_size(const FilterCall& call) {
  FICOCO_VALUE(call.params.patches <= kMaxPatches, "filter", "patch_attention",
               check::text("of at most ", kMaxPatches, " patches on a GPU"), call.params.patches,
               "reduce on the CPU, or split the image");
}

std::tuple<Tensor, Tensor, Tensor> filter(const Tensor& patch_attention, const Tensor& class_attention,
                                          const std::optional<Tensor>& ids, int64_t r, double lam, bool normalize,
                                          double penalty, int64_t window, int64_t grid_height, int64_t grid_width,
                                          bool class_token) {
  const FilterCall call = filter_call(patch_attention, class_attention, ids,
                                      {r, lam, normalize, penalty, window, grid_height, grid_width, class_token});
  check_size(call);
  run("filter", patch_attention, call.params,
      [](const FilterParams& p, void* workspace, cudaStream_t stream) { return launch_filter(p, workspace, stream); });
  return {call.redundancy, call.sources, call.kept};
}

std::tuple<Tensor, Tensor> run_correlate(const Tensor& like, const CorrelateCall& call) {
  check_grid(call);
  run("correlate", like, call.params, [](const CorrelateParams& p, void* workspace, cudaStream_t stream) {
    return launch_correlate(p, workspace, stream);
  });
  return {call.targets, call.weights};
}

std::tuple<Tensor, Tensor> correlate(const Tensor& query, const Tensor& key, const Tensor& sources, const Tensor& kept,
                                     int64_t k, double scale, std::string_view alpha, bool class_token, bool probs) {
  return run_correlate(query, correlate_call(query, key, sources, kept, k, scale, alpha, class_token, probs));
}

std::tuple<Tensor, Tensor> correlate_map(const Tensor& attn, const Tensor& sources, const Tensor& kept, int64_t k,
                                         std::string_view alpha, bool class_token) {
  return run_correlate(attn, correlate_call(attn, sources, kept, k, alpha, class_token));
}

std::tuple<Tensor, Tensor> correlate_key(const Tensor& key, const Tensor& sources, const Tensor& kept, int64_t k,
                                         std::string_view alpha, bool class_token) {
  return run_correlate(key, correlate_key_call(key, sources, kept, k, alpha, class_token));
}

std::tuple<Tensor, Tensor, Tensor> compress(const Tensor& tokens, const Tensor& sources, const Tensor& kept,
                                            const Tensor& targets, const Tensor& weights,
                                            const std::optional<Tensor>& size, bool size_weighted) {
  const CompressCall call = compress_call(tokens, sources, kept, targets, weights, size, size_weighted);
  check_grid(call);
  run("compress", tokens, call.params,
      [](const CompressParams& p, void*, cudaStream_t stream) { return launch_compress(p, stream); });
  return {call.out, call.size, call.source_map};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> match(const Tensor& key, int64_t r, bool class_token,
                                                         bool distill_token) {
  const MatchCall call = match_call(key, r, class_token, distill_token);
  FICOCO_VALUE(call.params.tokens - call.params.first <= kMaxPatches, "match", "key",
               check::text("of at most ", kMaxPatches, " patches on a GPU"), call.params.tokens,
               "reduce on the CPU, or split the image");
  check_grid("match", "key", call.params.key.heads, call.params.tokens, call.params.width);
  run("match", key, call.params,
      [](const MatchParams& p, void* workspace, cudaStream_t stream) { return launch_match(p, workspace, stream); });
  return {call.redundancy, call.sources, call.kept, call.targets, call.weights};
}

Tensor token_attention(const Tensor& query, const Tensor& key, const Tensor& tokens, const Tensor& others,
                       const Tensor& weights, const std::optional<Tensor>& key_mask, double scale, bool probs,
                       bool column, bool causal) {
  const TokenCall call = token_call(query, key, tokens, others, weights, key_mask, scale, probs, column, causal);
  check_grid("token_attention", "query", call.params.query.heads, call.params.keys, call.params.width);
  run("token_attention", query, call.params, [](const TokenParams& p, void* workspace, cudaStream_t stream) {
    return launch_token_attention(p, workspace, stream);
  });
  return call.out;
}

std::tuple<Tensor, Tensor> correlate_tokens(const Tensor& query, const Tensor& key, const Tensor& sources,
                                            const Tensor& candidates, const Tensor& others, const Tensor& weights,
                                            const std::optional<Tensor>& key_mask, int64_t k, double scale,
                                            double gamma, std::string_view alpha, bool probs, bool column,
                                            bool causal) {
  const TokenLinksCall call = token_links_call(query, key, sources, candidates, others, weights, key_mask, k, scale,
                                               gamma, alpha, probs, column, causal);
  check_grid("correlate", "query", call.params.query.heads, call.params.keys, call.params.width);
  check_grid("correlate", "sources", 1, call.params.r, 0);
  run("correlate", query, call.params, [](const TokenLinksParams& p, void* workspace, cudaStream_t stream) {
    return launch_correlate_tokens(p, workspace, stream);
  });
  return {call.targets, call.weights};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> to_sequence(const Tensor& visual, const Tensor& sources, const Tensor& kept,
                                                       const Tensor& targets, int64_t tokens) {
  const SequenceCall call = sequence_call(visual, sources, kept, targets, tokens);
  run("to_sequence", visual, call.params,
      [](const SequenceParams& p, void*, cudaStream_t stream) { return launch_to_sequence(p, stream); });
  return {call.sources, call.kept, call.targets, call.visual};
}

using Reduced = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class Stats, class MakeCorrelate>
Reduced run_reduce(const Tensor& tokens, const Stats& stats, const std::optional<Tensor>& ids,
                   const std::optional<Tensor>& size, const FilterSettings& settings, bool size_weighted,
                   const MakeCorrelate& make_correlate) {
  const FilterCall filter = filter_call(stats.patch_attention, stats.class_attention, ids, settings);
  check_size(filter);
  check_grid(stats);
  const CorrelateCall correlate = make_correlate(filter.sources, filter.kept);
  check_grid(correlate);
  const CompressCall compress =
      compress_call(tokens, filter.sources, filter.kept, correlate.targets, correlate.weights, size, size_weighted);
  ReduceParams params{};
  if constexpr (std::is_same_v<Stats, MapStatsCall>) {
    params.map = true;
    params.map_stats = stats.params;
  } else {
    params.stats = stats.params;
  }
  params.filter = filter.params;
  params.correlate = correlate.params;
  params.compress = compress.params;
  run("reduce", tokens, params,
      [](const ReduceParams& p, void* workspace, cudaStream_t stream) { return launch_reduce(p, workspace, stream); });
  return {compress.out,   compress.size, compress.source_map, filter.redundancy,
          filter.sources, filter.kept,   correlate.targets,   correlate.weights};
}

Reduced reduce(const Tensor& tokens, const Tensor& query, const Tensor& key, double scale,
               const std::optional<Tensor>& ids, const std::optional<Tensor>& size, int64_t r, int64_t k,
               bool class_token, double lam, bool probs, bool column, bool normalize, double penalty, int64_t window,
               int64_t grid_height, int64_t grid_width, std::string_view correlation, std::string_view alpha,
               bool size_weighted) {
  check::correlation(correlation);
  const StatsCall stats = stats_call(query, key, scale, class_token, probs, column, lam != 0);
  return run_reduce(
      tokens, stats, ids, size, {r, lam, normalize, penalty, window, grid_height, grid_width, class_token},
      size_weighted, [&](const Tensor& sources, const Tensor& kept) {
        return correlation == "key"
                   ? correlate_key_call(key, sources, kept, k, alpha, class_token)
                   : correlate_call(query, key, sources, kept, k, scale, alpha, class_token, correlation == "probs");
      });
}

Reduced reduce_map(const Tensor& tokens, const Tensor& attn, const std::optional<Tensor>& ids,
                   const std::optional<Tensor>& size, int64_t r, int64_t k, bool class_token, double lam, bool,
                   bool column, bool normalize, double penalty, int64_t window, int64_t grid_height, int64_t grid_width,
                   std::string_view, std::string_view alpha, bool size_weighted) {
  const MapStatsCall stats = stats_call(attn, class_token, column, lam != 0);
  return run_reduce(tokens, stats, ids, size,
                    {r, lam, normalize, penalty, window, grid_height, grid_width, class_token}, size_weighted,
                    [&](const Tensor& sources, const Tensor& kept) {
                      return correlate_call(attn, sources, kept, k, alpha, class_token);
                    });
}

}  // namespace
}  // namespace ficoco

TORCH_LIBRARY_IMPL(FICOCO_LIBRARY, FICOCO_DEVICE, m) {
  m.impl("attention_stats", &ficoco::attention_stats);
  m.impl("attention_stats.map", &ficoco::attention_stats_map);
  m.impl("filter", &ficoco::filter);
  m.impl("correlate", &ficoco::correlate);
  m.impl("correlate.map", &ficoco::correlate_map);
  m.impl("correlate.key", &ficoco::correlate_key);
  m.impl("correlate.tokens", &ficoco::correlate_tokens);
  m.impl("compress", &ficoco::compress);
  m.impl("match", &ficoco::match);
  m.impl("token_attention", &ficoco::token_attention);
  m.impl("to_sequence", &ficoco::to_sequence);
  m.impl("reduce", &ficoco::reduce);
  m.impl("reduce.map", &ficoco::reduce_map);
}

#ifdef FICOCO_EMULATED
TORCH_LIBRARY_FRAGMENT(ficoco_emu, m) {
  m.def("launch_count() -> int", [] { return ficoco::launch_count(); });
}
#endif
