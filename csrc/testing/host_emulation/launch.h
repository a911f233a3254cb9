// kernel<<<grid, block, shared, stream>>>(...): the checks of a launch, and the blocks of the grid one after another.
#pragma once
#include <dlfcn.h>
#include <map>
#include <mutex>
#include <tuple>
#include <utility>
#include "block.h"

namespace cuemu {

struct Config {
  dim3 grid, block;
  size_t shared;
  Config(dim3 grid, dim3 block, size_t shared = 0, cudaStream_t /*stream*/ = nullptr)
      : grid(grid), block(block), shared(shared) {}
};

inline int environment(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr || *text == 0 ? otherwise : std::atoi(text);
}

// The emulated device, as cudaDeviceGetAttribute describes it: an H100 with few multiprocessors.
constexpr int kMultiprocessors = 4;
constexpr size_t kSharedByDefault = 48 * 1024;
inline size_t shared_opt_in() { return static_cast<size_t>(environment("CUEMU_SHARED_KB", 227)) * 1024; }
inline int capability() { return environment("CUEMU_CAPABILITY", 90); }

inline std::mutex mutex;
inline cudaError_t last_error = cudaSuccess;
inline std::map<const void*, size_t> opted_in;  // by kernel: cudaFuncAttributeMaxDynamicSharedMemorySize

inline size_t shared_limit(const void* kernel) {
  const auto found = opted_in.find(kernel);
  return found == opted_in.end() ? std::min(kSharedByDefault, shared_opt_in())
                                 : std::max(found->second, kSharedByDefault);
}

inline cudaError_t check(const Config& config, const void* kernel) {
  const dim3 g = config.grid, b = config.block;
  const size_t threads = size_t{b.x} * b.y * b.z;
  if (threads == 0 || threads > 1024 || b.z > 64 || g.x == 0 || g.y == 0 || g.z == 0 || g.x > 0x7fffffffu ||
      g.y > 65535 || g.z > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  return config.shared > shared_limit(kernel) ? cudaErrorInvalidValue : cudaSuccess;
}

#ifdef CUEMU_ASAN
// A sanitizer's report knows nothing of blocks and threads.
inline void name_thread() {
  if (current == nullptr) return;
  const uint3 b = block_index, t = current->index;
  std::fprintf(stderr, "cuemu: in %s, block (%u, %u, %u), thread (%u, %u, %u)\n", block.kernel, b.x, b.y, b.z, t.x, t.y,
               t.z);
}

inline void name_thread_in_reports() {
  __sanitizer_set_death_callback(&name_thread);
  // UBSan's runtime has a function of the same name, which ASan's hides.
  void* ubsan = dlopen("libubsan.so.1", RTLD_LAZY | RTLD_NOLOAD);
  void* function = ubsan == nullptr ? nullptr : dlsym(ubsan, "__sanitizer_set_death_callback");
  if (function != nullptr) reinterpret_cast<void (*)(void (*)())>(function)(&name_thread);
}
#endif

inline void run_grid(const char* name, const Config& config, size_t shared_limit, void (*body)(void*), void* argument) {
  const dim3 g = config.grid, b = config.block;
  block.size = size_t{b.x} * b.y * b.z;
  if (block.threads.empty()) {
    block.threads.resize(1024);
    for (uint32_t i = 0; i < 1024; ++i) block.threads[i].number = i;
#ifdef CUEMU_ASAN
    name_thread_in_reports();
#endif
  }
  for (uint32_t i = 0; i < block.size; ++i) {
    Thread& thread = block.threads[i];
    if (thread.context.stack == nullptr) make_fiber(thread.context, i, &fiber_entry);
    thread.index = {i % b.x, i / b.x % b.y, i / b.x / b.y};
  }
  block.warps.resize((block.size + 31) / 32);
  block.body = body;
  block.argument = argument;
  block.kernel = name;
  block_dim = b;
  grid_dim = g;
  block.dynamic_bytes = config.shared;
  block.shared_limit = shared_limit > kSharedByDefault ? shared_opt_in() : kSharedByDefault;
  block.buffer = static_cast<char*>(std::malloc(config.shared + kSharedSlack));
  Order its_order;
  order = &its_order;
  for (const uint32_t i : order->of(size_t{g.x} * g.y * g.z)) {
    block_index = {i % g.x, i / g.x % g.y, i / g.x / g.y};
    run_block();
  }
#ifdef CUEMU_ASAN
  __asan_unpoison_memory_region(block.buffer, config.shared + kSharedSlack);
#endif
  std::free(block.buffer);
}

// The kernel comes as a pointer, so its template arguments must be spelt out. Every thread gets its own copy of the
// arguments, structs included.
template <class... Parameters, class... Arguments>
void launch(const char* name, const Config& config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments), "a kernel is launched with all of its arguments");
  const std::lock_guard<std::mutex> lock(mutex);
  const void* address = reinterpret_cast<const void*>(kernel);
  if (const cudaError_t error = check(config, address); error != cudaSuccess) {
    last_error = error;  // cudaGetLastError gives it, and nothing runs, as on a GPU
    return;
  }
  const std::tuple<Parameters...> values(std::forward<Arguments>(arguments)...);
  auto call = [&] { std::apply(kernel, values); };
  run_grid(name, config, shared_limit(address), [](void* it) { (*static_cast<decltype(call)*>(it))(); }, &call);
}

}  // namespace cuemu
