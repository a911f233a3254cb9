// The operators on CUDA tensors: checks the sizes of grids, then launches the kernels of cuda/ on the current stream.
// No kernel code; device and stream come from c10, so that the file compiles against a torch with or without CUDA.
//
// With FICOCO_EMULATED it serves CPU tensors: the tests run the kernels on the host.
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstdio>

#include "cuda/launch.h"
#include "images.h"
#include "ops/attention_stats.h"
#include "ops/bipartite_thin.h"
#include "ops/compress.h"
#include "ops/correlate.h"
#include "ops/correlate_tokens.h"
#include "ops/cosines.h"
#include "ops/filter.h"
#include "ops/greedy_cover.h"
#include "ops/greedy_select.h"
#include "ops/match.h"
#include "ops/received_from.h"
#include "ops/reduce.h"
#include "ops/reduce_sequence.h"
#include "ops/to_sequence.h"
#include "ops/token_attention.h"
#include "ops/top_of_segments.h"
#include "ops/window_similarity.h"

#ifndef FICOCO_EMULATED
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>
#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#define FICOCO_NVTX 1
#endif
#endif

namespace ficoco {
namespace {

#ifndef FICOCO_EMULATED
// Before about torch 2.11 a c10::Stream has no native handle; libtorch_cuda then has a C function for it.
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
    TORCH_CHECK(get, "ficoco_ext: this torch does not give its current CUDA stream; upgrade torch");
    void* out = nullptr;
    TORCH_CHECK(get(stream.device_index(), &out) == 0, "ficoco_ext: torch could not give its current CUDA stream");
    return static_cast<cudaStream_t>(out);
  }
}
#endif

// Makes the device of a tensor current, with its stream, as long as this object lives.
class OnDevice {
 public:
#ifdef FICOCO_EMULATED
  explicit OnDevice(const Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
#else
  explicit OnDevice(const Tensor& on)
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
    char name[64];  // operators' names are short, and nothing is allocated for a range
    std::snprintf(name, sizeof(name), "ficoco::%s", op);
    nvtxRangePushA(name);
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

// Calls `launch` with as many images as fit into one grid, a workspace and the stream, until all are done.
template <class Params, class Launch>
void launch_images(const char* op, const Tensor& like, const Params& params, const Launch& launch) {
  const Range range(op);
  const OnDevice device(like);
  const int64_t batch = batch_of(params);
  for (int64_t b = 0; b < batch; b += kMaxImages) {
    const Params some = image(params, b, std::min(kMaxImages, batch - b));
    const size_t bytes = workspace_bytes(some);
    FICOCO_VALUE(bytes < kUncountable, op, "the tensors", "of sizes whose product can be counted in bytes", "larger",
                 "split the batch");
    Tensor workspace;
    if (bytes) workspace = at::empty({static_cast<int64_t>(bytes)}, like.options().dtype(at::kByte));
    check_launch(op, launch(some, bytes ? workspace.mutable_data_ptr() : nullptr, device.stream()));
  }
}

// Whether they fit into the grids.
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

void check_grid(const AttentionStatsCall& call) {
  check_grid("attention_stats", "query", call.params.query.heads, call.params.tokens, call.params.width);
}

void check_grid(const AttentionStatsMapCall& call) {
  check_grid("attention_stats", "attn", call.params.attn.heads, call.params.tokens, 0);
}

void check_grid(const CorrelateCall& call) {
  const CorrelateParams& p = call.params;
  const bool map = p.by == Correlation::kMap, key = p.by == Correlation::kKey;
  const Rows& rows = map ? p.attn : key ? p.key : p.query;
  check_grid("correlate", map ? "attn" : key ? "key" : "query", rows.heads, p.tokens, map ? 0 : p.width);
}

void check_patches(const char* op, const char* argument, int64_t patches, int64_t got) {
  FICOCO_VALUE(patches <= kMaxPatches, op, argument,
               check::text("of at most ", kMaxPatches, " patches or tokens on a GPU"), got,
               "take fewer frames or smaller pictures, split them, or reduce on the CPU");
}

void check_grid(const FilterCall& call) {
  check_patches("filter", "patch_attention", call.params.patches, call.params.patches);
}

template <class StatsCall>
void launch_stats(const StatsCall& call) {
  check_grid(call);
  launch_images(
      "attention_stats", call.class_attention, call.params,
      [](const auto& p, void* workspace, cudaStream_t stream) { return launch_attention_stats(p, workspace, stream); });
}

class Cuda final : public Device {
 public:
  void run(const AttentionStatsCall& call) const override { launch_stats(call); }
  void run(const AttentionStatsMapCall& call) const override { launch_stats(call); }

  void run(const FilterCall& call) const override {
    check_grid(call);
    launch_images("filter", call.redundancy, call.params, launch_filter);
  }

  void run(const CorrelateCall& call) const override {
    check_grid(call);
    launch_images("correlate", call.targets, call.params, launch_correlate);
  }

  void run(const CorrelateTokensCall& call) const override {
    check_grid("correlate", "query", call.params.query.heads, call.params.keys, call.params.width);
    check_grid("correlate", "sources", 1, call.params.r, 0);
    launch_images("correlate", call.targets, call.params, launch_correlate_tokens);
  }

  void run(const MatchCall& call) const override {
    check_patches("match", "key", call.params.tokens - call.params.first, call.params.tokens);
    check_grid("match", "key", call.params.key.heads, call.params.tokens, call.params.width);
    launch_images("match", call.redundancy, call.params, launch_match);
  }

  void run(const CosinesCall& call) const override {
    check_grid("cosines", "features", 1, call.params.tokens, call.params.width);
    check_grid("cosines", "things", 1, call.params.thing_count, call.params.width);
    launch_images("cosines", call.out, call.params,
                  [](const CosinesParams& p, void*, cudaStream_t stream) { return launch_cosines(p, stream); });
  }

  void run(const GreedySelectCall& call) const override {
    check_patches("greedy_select", "features", call.params.tokens, call.params.tokens);
    check_grid("greedy_select", "features", 1, call.params.tokens, call.params.width);
    launch_images("greedy_select", call.order, call.params, launch_greedy_select);
  }

  void run(const GreedyCoverCall& call) const override {
    check_patches("greedy_cover", "cover", call.params.tokens, call.params.tokens);
    launch_images("greedy_cover", call.order, call.params, launch_greedy_cover);
  }

  void run(const BipartiteThinCall& call) const override {
    check_patches("bipartite_thin", "features", call.params.tokens, call.params.tokens);
    check_grid("bipartite_thin", "features", 1, call.params.tokens, call.params.width);
    launch_images("bipartite_thin", call.left, call.params, launch_bipartite_thin);
  }

  void run(const WindowSimilarityCall& call) const override {
    constexpr const char* op = "window_similarity";
    const WindowSimilarityParams& p = call.params;
    check_grid(op, "tokens", 1, p.down * p.across, p.width);
    FICOCO_VALUE(p.down * p.across == 0 || p.window <= kMaxWindow, op, "window",
                 check::text("at most ", kMaxWindow, " on a GPU"), p.window,
                 "use the CPU, where there is no such limit");
    launch_images(op, call.out, p, [](const WindowSimilarityParams& some, void*, cudaStream_t stream) {
      return launch_window_similarity(some, stream);
    });
  }

  void run(const ReceivedFromCall& call) const override {
    check_grid("received_from", "query", call.params.query.heads, call.params.keys, call.params.width);
    launch_images("received_from", call.total, call.params, launch_received_from);
  }

  void run(const TopOfSegmentsCall& call) const override {
    check_grid("top_of_segments", "scores", 1, call.params.tokens, 0);
    launch_images("top_of_segments", call.kept, call.params, launch_top_of_segments);
  }

  void run(const CompressCall& call) const override {
    check_grid("compress", "tokens", 1, call.params.count, 0);
    launch_images("compress", call.out, call.params,
                  [](const CompressParams& p, void*, cudaStream_t stream) { return launch_compress(p, stream); });
  }

  void run(const TokenAttentionCall& call) const override {
    check_grid("token_attention", "query", call.params.query.heads, call.params.keys, call.params.width);
    launch_images("token_attention", call.out, call.params, launch_token_attention);
  }

  void run(const ToSequenceCall& call) const override {
    launch_images("to_sequence", call.sources, call.params,
                  [](const ToSequenceParams& p, void*, cudaStream_t stream) { return launch_to_sequence(p, stream); });
  }

  void run(const ReduceCall& call) const override {
    check_grid(call.filter);
    std::visit([](const auto& stats) { check_grid(stats); }, call.stats);
    check_grid(call.correlate);
    ReduceParams params{};
    if (const auto* map = std::get_if<AttentionStatsMapCall>(&call.stats)) {
      params.map = true;
      params.map_stats = map->params;
    } else {
      params.stats = std::get<AttentionStatsCall>(call.stats).params;
    }
    params.filter = call.filter.params;
    params.correlate = call.correlate.params;
    params.compress = call.compress.params;
    launch_images("reduce", call.compress.out, params, launch_reduce);
  }

  void run(const ReduceSequenceCall& call) const override {
    constexpr const char* op = "reduce_sequence";
    const ReduceSequenceParams& p = call.params;
    check_patches(op, "visual", p.visual_count, p.visual_count);
    check_grid(op, "query", p.query.heads, p.count, p.width);
    launch_images(op, call.out, p, launch_reduce_sequence);
  }
};

}  // namespace

const Device& cuda_device() {
  static const Cuda device;
  return device;
}

}  // namespace ficoco
