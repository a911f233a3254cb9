// One block of CUDA threads at a time: its threads and warps, __syncthreads, the order in which threads run, deadlocks,
// and shared memory. Emulated code runs on one OS thread, so nothing here is atomic; launch.h holds the lock.
#pragma once
#include <algorithm>
#include <random>
#include <source_location>
#include <string>
#include <vector>
#include "fibers.h"

namespace cuemu {

using Location = std::source_location;
// The last parameter of every function that can fail: by default the kernel's line that made the call.
#define CUEMU_LOCATION cuemu::Location location = cuemu::Location::current()

struct Thread;
// What a warp operation does once all of its lanes have come: from their values to their results. Its address is also
// the operation's identity: lanes of one mask must have come to the same one.
using Exchange = void (*)(Thread* lanes, uint32_t members);

enum class State : uint8_t { kReady, kAtBarrier, kAtWarp, kDone };

// A copy to shared memory that was started and not yet waited for.
struct AsyncCopy {
  void* to;
  const void* from;  // nullptr: zeros
  size_t bytes;
};

struct Thread {
  Context context;
  uint3 index{};
  uint32_t number = 0;
  State state = State::kDone;
  Location location;  // of the barrier or warp operation that it waits at
  uint32_t mask = 0;  // of that warp operation, as are the rest
  uint32_t source = 0;
  uint64_t value = 0, result = 0;
  Exchange exchange = nullptr;
  std::vector<AsyncCopy> copies;
  std::vector<size_t> commits;  // how many copies there were at each

  uint32_t lane() const { return number % 32; }
};

struct Warp {
  uint32_t live = 0;     // lanes that have not returned
  uint32_t arrived = 0;  // lanes that wait at a warp operation
};

struct Block {
  std::vector<Thread> threads;  // their fibers are kept from block to block
  std::vector<Warp> warps;
  Context scheduler;
  size_t size = 0, live = 0, at_barrier = 0;
  int predicates = 0, last_predicates = 0;  // of __syncthreads_count: of this barrier, of the one just passed
  void (*body)(void*) = nullptr;
  void* argument = nullptr;
  const char* kernel = "";
  uint64_t serial = 0;  // of the block, over all launches
  char* buffer = nullptr;
  char* dynamic = nullptr;  // dynamic shared memory, within buffer
  size_t dynamic_bytes = 0, static_bytes = 0, shared_limit = 0;
};

inline Block block;
inline Thread* current = nullptr;
inline uint3 block_index{};
inline dim3 block_dim, grid_dim;

[[noreturn]] inline void die(const std::string& what, const Location* location = nullptr) {
  std::fprintf(stderr, "cuemu: %s\n", what.c_str());
  if (location != nullptr)
    std::fprintf(stderr, "cuemu:   at %s:%u\n", location->file_name(), unsigned(location->line()));
  if (current != nullptr) {
    const uint3 b = block_index, t = current->index;
    std::fprintf(stderr, "cuemu:   in %s, block (%u, %u, %u), thread (%u, %u, %u)\n", block.kernel, b.x, b.y, b.z, t.x,
                 t.y, t.z);
  }
  std::abort();
}

inline void to_scheduler() { switch_to(current->context, block.scheduler, true); }

inline void resume(Thread& thread) {
  current = &thread;
  switch_to(block.scheduler, thread.context, false);
}

inline void fiber_entry() {
  after_switch(nullptr, &block.scheduler);
  for (;;) {
    block.body(block.argument);
    block.warps[current->number / 32].live &= ~(1u << current->lane());
    current->state = State::kDone;
    --block.live;
    to_scheduler();
  }
}

// Runs every operation of the warp whose lanes have all come. A lane that returned is not waited for, as on GPUs since
// Volta. Lanes that wait with another mask, for a later operation, do not count as having come.
inline void complete_operations(uint32_t number) {
  Warp& warp = block.warps[number];
  Thread* lanes = &block.threads[number * 32];
  for (uint32_t left = warp.arrived; left != 0;) {
    const Thread& first = lanes[__builtin_ctz(left)];
    uint32_t come = 0;
    for (uint32_t rest = left; rest != 0; rest &= rest - 1) {
      const uint32_t lane = __builtin_ctz(rest);
      if (lanes[lane].mask != first.mask) continue;
      come |= 1u << lane;
      if (lanes[lane].exchange != first.exchange) {
        die("lanes of one mask came to different warp operations; the other one is at line " +
                std::to_string(first.location.line()),
            &lanes[lane].location);
      }
    }
    left &= ~come;
    if (come != (first.mask & warp.live)) continue;
    for (uint32_t rest = come; rest != 0; rest &= rest - 1) lanes[__builtin_ctz(rest)].state = State::kReady;
    warp.arrived &= ~come;
    first.exchange(lanes, come);
  }
}

// The current lane gives `value` to a warp operation of `mask` and gets its result.
inline uint64_t meet(uint32_t mask, uint64_t value, uint32_t source, Exchange exchange, const Location& location) {
  Thread& self = *current;
  Warp& warp = block.warps[self.number / 32];
  if ((mask >> self.lane() & 1) == 0) die("a lane called a warp operation whose mask lacks it", &location);
  self.value = value;
  self.source = source;
  self.mask = mask;
  self.exchange = exchange;
  self.location = location;
  self.state = State::kAtWarp;
  warp.arrived |= 1u << self.lane();
  if ((warp.arrived & mask) == (mask & warp.live)) complete_operations(self.number / 32);
  if (self.state != State::kReady) to_scheduler();
  return self.result;
}

inline int barrier(int predicate, const Location& location) {
  current->location = location;
  current->state = State::kAtBarrier;
  block.predicates += predicate != 0;
  ++block.at_barrier;
  to_scheduler();
  return block.last_predicates;
}

// A GPU counts arrivals, whatever barrier they are at; CUDA calls it undefined if they differ, so it is an error
// here.
inline void release_barrier() {
  const Location* first = nullptr;
  for (size_t i = 0; i < block.size; ++i) {
    Thread& thread = block.threads[i];
    if (thread.state != State::kAtBarrier) continue;
    thread.state = State::kReady;
    if (first == nullptr) first = &thread.location;
    if (thread.location.line() != first->line() || std::strcmp(thread.location.file_name(), first->file_name()) != 0) {
      current = &thread;
      die("divergent barrier: threads of a block came to different __syncthreads, the other one at line " +
              std::to_string(first->line()),
          &thread.location);
    }
  }
  block.at_barrier = 0;
  block.last_predicates = block.predicates;
  block.predicates = 0;
}

[[noreturn]] inline void deadlock() {
  size_t waiting = 0;
  Thread* in_warp = nullptr;
  Thread* at_barrier = nullptr;
  for (size_t i = 0; i < block.size; ++i) {
    Thread& thread = block.threads[i];
    waiting += thread.state != State::kDone;
    if (thread.state == State::kAtBarrier && at_barrier == nullptr) at_barrier = &thread;
    if (thread.state == State::kAtWarp && in_warp == nullptr) in_warp = &thread;
  }
  current = in_warp;  // there is one: a barrier at which all others wait would be released
  char mask[16];
  std::snprintf(mask, sizeof mask, "0x%08x", in_warp->mask);
  std::string what = "deadlock: " + std::to_string(waiting) + " threads wait, " + std::to_string(block.at_barrier) +
                     " of them at __syncthreads";
  if (at_barrier != nullptr) what += " (line " + std::to_string(at_barrier->location.line()) + ")";
  die(what + ", others at a warp operation with mask " + mask + ", some of whose lanes never come", &in_warp->location);
}

// CUEMU_ORDER=fwd|rev|rand:SEED: the order of blocks, of warps, and of lanes within a warp. CUDA promises none, so a
// result that changes with it shows a missing barrier. rand draws anew at each barrier.
class Order {
 public:
  Order() {
    const char* text = std::getenv("CUEMU_ORDER");
    const std::string order = text == nullptr || *text == 0 ? "fwd" : text;
    reverse_ = order == "rev";
    random_ = order.rfind("rand:", 0) == 0;
    if (random_) generator_.seed(static_cast<uint32_t>(std::strtoul(order.c_str() + 5, nullptr, 10)));
    if (!reverse_ && !random_ && order != "fwd") die("CUEMU_ORDER must be fwd, rev or rand:SEED, got " + order);
  }

  std::vector<uint32_t> of(size_t count) {
    std::vector<uint32_t> numbers(count);
    for (size_t i = 0; i < count; ++i) numbers[i] = static_cast<uint32_t>(reverse_ ? count - 1 - i : i);
    if (random_) std::shuffle(numbers.begin(), numbers.end(), generator_);
    return numbers;
  }

  bool random() const { return random_; }
  bool early() { return random_ ? generator_() % 2 != 0 : reverse_; }

 private:
  bool reverse_ = false, random_ = false;
  std::mt19937 generator_;
};

inline Order* order = nullptr;  // of the launch that runs

// Whether an asynchronous copy is done when it is started.
inline bool copy_at_start() { return order->early(); }

// Lets the lanes of a warp run in turn until each has returned or waits for another warp.
inline bool run_warp(uint32_t number, const std::vector<uint32_t>& lanes) {
  bool any = false;
  for (bool progress = true; progress;) {
    progress = false;
    for (const uint32_t lane : lanes) {
      const size_t i = number * 32 + lane;
      if (i >= block.size || block.threads[i].state != State::kReady) continue;
      resume(block.threads[i]);
      progress = any = true;
    }
    if (block.warps[number].arrived != 0) complete_operations(number);  // a lane that returned may complete one
  }
  return any;
}

inline void run_block() {
  block.live = block.size;
  block.at_barrier = 0;
  block.predicates = 0;
  block.dynamic = nullptr;
  block.static_bytes = 0;
  ++block.serial;
  for (size_t w = 0; w < block.warps.size(); ++w) {
    const size_t lanes = std::min<size_t>(32, block.size - w * 32);
    block.warps[w] = {lanes == 32 ? ~0u : (1u << lanes) - 1, 0};
  }
  for (size_t i = 0; i < block.size; ++i) {
    block.threads[i].state = State::kReady;
    block.threads[i].copies.clear();
    block.threads[i].commits.clear();
  }
  std::vector<uint32_t> warps = order->of(block.warps.size()), lanes = order->of(32);
  while (block.live != 0) {
    bool progress = false;
    for (const uint32_t warp : warps) {
      if (order->random()) lanes = order->of(32);
      progress |= run_warp(warp, lanes);
    }
    if (block.live != 0 && block.at_barrier == block.live) {
      release_barrier();
      progress = true;
      if (order->random()) warps = order->of(block.warps.size());
    }
    if (!progress) deadlock();
  }
  current = nullptr;
}

// Shared memory starts undefined: all bits set, which is NaN in every floating-point type and -1 as an index.
// cu2cpp.py calls this after each __shared__ variable; the first thread of a block that gets there fills it.
inline void fresh_shared(uint64_t& seen, void* variable, size_t bytes) {
  if (seen == block.serial) return;
  seen = block.serial;
  std::memset(variable, 0xFF, bytes);
  block.static_bytes += bytes;
  if (block.static_bytes > 48 * 1024) die("more than 48 KiB of static shared memory");
  if (block.static_bytes + block.dynamic_bytes > block.shared_limit) {
    die("static and dynamic shared memory together exceed the limit of this launch");
  }
}

constexpr size_t kSharedSlack = 4096;  // room for aligned dynamic shared memory, and to see a write after it

// Where `extern __shared__` points. It is aligned as declared, at least to 16 bytes, and to no more: what relies on
// more has to say so with __align__.
template <class T, size_t kAlign>
T* dynamic_shared() {
  constexpr size_t align = std::max({alignof(T), kAlign, size_t{16}});
  static_assert(2 * align <= kSharedSlack / 2);
  if (current == nullptr) die("extern __shared__ must be declared within the kernel");
  if (block.dynamic == nullptr) {
    const auto start = reinterpret_cast<uintptr_t>(block.buffer) + kSharedSlack / 4;
    block.dynamic = reinterpret_cast<char*>((start + 2 * align - 1) / (2 * align) * (2 * align) + align);
#ifdef CUEMU_ASAN
    __asan_poison_memory_region(block.buffer, block.dynamic_bytes + kSharedSlack);
    __asan_unpoison_memory_region(block.dynamic, block.dynamic_bytes);
#endif
    std::memset(block.dynamic, 0xFF, block.dynamic_bytes);
  }
  if (reinterpret_cast<uintptr_t>(block.dynamic) % align != 0) {
    die("extern __shared__ is declared with several alignments in one kernel");
  }
  return reinterpret_cast<T*>(block.dynamic);
}

}  // namespace cuemu
