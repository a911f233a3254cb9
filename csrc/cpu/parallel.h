// Threads for the CPU kernels. The caller of the kernels provides them, so no header of torch is needed here.
#pragma once
#include <cstdint>

namespace ficoco {

// Runs run(task, begin, end) for parts of [0, count), each on some thread. Defined in ops/device_cpu.cpp, which
// includes torch.
void parallel_for(int64_t count, const void* task, void (*run)(const void* task, int64_t begin, int64_t end));

// Runs task(i) for i in [0, count), each on some thread.
template <class Task>
void each(int64_t count, const Task& task) {
  parallel_for(count, &task, [](const void* given, int64_t begin, int64_t end) {
    const Task& run = *static_cast<const Task*>(given);
    for (int64_t i = begin; i < end; ++i) run(i);
  });
}

}  // namespace ficoco
