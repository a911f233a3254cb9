// What CUDA C++ offers only as PTX: tensor cores whose every number has a known position, the loads that feed them,
// asynchronous copies to shared memory, 2^x. The host emulation has its own versions (ptx.h and async_copy.h of
// testing/host_emulation), so these lines run only on a GPU.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace ficoco {

#ifdef CUEMU

using cuemu::commit_copies;
using cuemu::copy_async;
using cuemu::count_in;
using cuemu::exp2_fast;
using cuemu::load_matrices;
using cuemu::multiply_add;
using cuemu::wait_for_copies;

#else

// Four 8 x 8 matrices of 16-bit numbers from shared memory; `row` of lane 8 m + i is row i of matrix m, 16 aligned
// bytes. out[m] of lane l: entries 2 (l % 4) and the next of row l / 4 of matrix m. All lanes call it.
__device__ __forceinline__ void load_matrices(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

// d += a b, 16 x 8 from 16 x 16 and 16 x 8. With g = lane / 4 and t = 2 (lane % 4), each lane holds
//   a: (g, t), (g + 8, t), (g, t + 8), (g + 8, t + 8) and the column after each
//   b: (t, g), (t + 8, g) and the row after each
//   d: (g, t), (g, t + 1), (g + 8, t), (g + 8, t + 1)
// All lanes call it. T is the type of a and b.
template <class T>
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

#define FICOCO_MULTIPLY_ADD(T, name)                                                                                 \
  template <>                                                                                                        \
  __device__ __forceinline__ void multiply_add<T>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." name "." name                                                       \
        ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "                                                                  \
        "{%8, %9}, {%0, %1, %2, %3};"                                                                                \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                             \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                             \
  }
FICOCO_MULTIPLY_ADD(__half, "f16")
FICOCO_MULTIPLY_ADD(__nv_bfloat16, "bf16")
#undef FICOCO_MULTIPLY_ADD

// Starts to copy kBytes (4, 8 or 16, to which both addresses are aligned) from global to shared memory, or zeros if
// there is nothing to read.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* to, const void* from, bool exists) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  const int bytes = exists ? kBytes : 0;
  if constexpr (kBytes == 16) {  // bypasses the first-level cache
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from), "n"(kBytes), "r"(bytes)
                 : "memory");
  }
}

// Closes a group of this thread's copies.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the last kGroups of this thread's groups are in flight. Other threads see the copies after a
// barrier.
template <int kGroups>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// Adds 1 to a counter and returns its value before. A thread that reads the new value sees all that this thread, and
// those it met at a barrier, wrote before. This is one fence of one thread; __threadfence() in all of them would be 256
// stronger ones.
__device__ __forceinline__ uint32_t count_in(uint32_t* counter) {
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
}

// 2^x within 2 ulp. Subnormal results become 0; exp2f spends three more instructions on them.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

#endif

}  // namespace ficoco
