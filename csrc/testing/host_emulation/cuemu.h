// Host emulation of CUDA: what makes a .cu file, once cu2cpp.py has rewritten its launches, a C++ file. build.py
// includes it in front of every one (-include cuemu.h). See README.md.
#pragma once
#define CUEMU 1

// The toolkit's own headers: the types, float4 and its like, half and bfloat16 with their arithmetic on the host.
#include <cuda_runtime.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __managed__
#undef __grid_constant__
#undef __forceinline__
#undef __noinline__
#undef __launch_bounds__
#undef __maxnreg__
#undef __cluster_dims__
#undef __align__
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __grid_constant__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __align__(n) __attribute__((aligned(n)))
// Blocks run one after another, so one copy serves all. ASan puts red zones around it, as around any other variable.
#define __shared__ static
// After every __shared__ variable, by cu2cpp.py.
#define CUEMU_FRESH(variable)                                                                                   \
  static uint64_t cuemu_seen_##variable = 0;                                                                    \
  cuemu::fresh_shared(cuemu_seen_##variable, const_cast<void*>(static_cast<const volatile void*>(&(variable))), \
                      sizeof(variable))

#include "device.h"
#include "launch.h"
#include "runtime.h"
#include "warp.h"
#include "async_copy.h"
#include "ptx.h"

#define threadIdx (cuemu::current->index)
#define blockIdx (cuemu::block_index)
#define blockDim (cuemu::block_dim)
#define gridDim (cuemu::grid_dim)
#define warpSize 32
#ifndef __clang__
#define __builtin_assume(condition) static_cast<void>(0)
#endif
