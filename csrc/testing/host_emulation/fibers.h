// Fibers: a stack of its own for every CUDA thread, and the switch between them and the scheduler. Nothing here knows
// about CUDA. A fiber gives up the processor only where it asks to, so a run is deterministic.
#pragma once
#include <sys/mman.h>
#include <unistd.h>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#if defined(__SANITIZE_ADDRESS__)
#define CUEMU_ASAN 1
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// glibc's swapcontext asks the kernel for the signal mask at every switch, twenty times the cost of the switch itself.
// -DCUEMU_UCONTEXT picks it on x86-64 too.
#if defined(__x86_64__) && !defined(CUEMU_UCONTEXT)
#define CUEMU_SWITCH 1
asm(R"(
.text
.weak cuemu_switch
.hidden cuemu_switch
.type cuemu_switch,@function
cuemu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
extern "C" __attribute__((visibility("hidden"))) void cuemu_switch(void** save_sp, void* load_sp);
#else
#include <ucontext.h>
#endif

// build.py compiles with -fvisibility=hidden: two emulated libraries in one process must not share their state.
namespace cuemu {

#ifdef CUEMU_ASAN
constexpr size_t kStackBytes = 256 * 1024;  // red zones around every variable
#else
constexpr size_t kStackBytes = 128 * 1024;
#endif

// Where a stack was left. The scheduler's own stack has one too, with `stack` as ASan reports it.
struct Context {
  const void* stack = nullptr;
  size_t stack_bytes = 0;
  void* asan_frames = nullptr;
#ifdef CUEMU_SWITCH
  void* sp = nullptr;
#else
  ucontext_t context;
#endif
};

// ASan has to know of a switch before and after it, or it takes the other stack for an overflow of this one.
inline void before_switch([[maybe_unused]] Context& from, [[maybe_unused]] const Context& to) {
#ifdef CUEMU_ASAN
  __sanitizer_start_switch_fiber(&from.asan_frames, to.stack, to.stack_bytes);
#endif
}

// `left` is filled in with the stack that was left, which is how the scheduler's bounds are learnt.
inline void after_switch([[maybe_unused]] Context* to, [[maybe_unused]] Context* left) {
#ifdef CUEMU_ASAN
  const void* stack = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(to ? to->asan_frames : nullptr, &stack, &bytes);
  if (left) {
    left->stack = stack;
    left->stack_bytes = bytes;
  }
#endif
}

// `learn`: `to` is left with its bounds, once the control is back at `from`.
inline void switch_to(Context& from, Context& to, bool learn) {
  before_switch(from, to);
#ifdef CUEMU_SWITCH
  cuemu_switch(&from.sp, to.sp);
#else
  swapcontext(&from.context, &to.context);
#endif
  after_switch(&from, learn ? &to : nullptr);
}

inline void make_fiber(Context& fiber, [[maybe_unused]] size_t number, void (*entry)()) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* map = mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
                   0);                                             // pages are taken only as they are touched
  if (map == MAP_FAILED || mprotect(map, page, PROT_NONE) != 0) {  // the guard page: an overflow is a segfault
    std::fprintf(stderr, "cuemu: no memory for a fiber's stack\n");
    std::abort();
  }
  char* stack = static_cast<char*>(map) + page;
  fiber.stack = stack;
  fiber.stack_bytes = kStackBytes;
#ifdef CUEMU_SWITCH
  // What cuemu_switch pops: six registers and the return address, then an empty slot where entry's own return address
  // would be, so that the stack is aligned as at a call. Stacks start at different cache sets: 1024 equal ones
  // collide.
  void** sp = reinterpret_cast<void**>(stack + kStackBytes - 64 * (1 + number % 16));
  *--sp = nullptr;
  *--sp = reinterpret_cast<void*>(entry);
  sp -= 6;
  std::memset(sp, 0, 6 * sizeof(void*));
  fiber.sp = sp;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack = {stack, 0, kStackBytes};
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
#endif
}

}  // namespace cuemu
