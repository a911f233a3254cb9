// cp.async, by the toolkit's names for it: a copy happens when its thread waits for it and never before, so that a
// missing wait shows as NaN.
#pragma once
#include <cstring>
#include "block.h"
#define _CUDA_PIPELINE_H_  // a later #include <cuda_pipeline.h> brings nothing

inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes, CUEMU_PLACE) {
  if (bytes != 4 && bytes != 8 && bytes != 16) cuemu::die("an asynchronous copy has 4, 8 or 16 bytes", &place);
  if (reinterpret_cast<uintptr_t>(to) % bytes != 0 || reinterpret_cast<uintptr_t>(from) % bytes != 0) {
    cuemu::die("an asynchronous copy must be aligned to its size", &place);
  }
  char sixteen[16];
  std::memcpy(sixteen, from, bytes);  // a bad address is reported here, by its line
  std::memcpy(sixteen, to, bytes);
  cuemu::current->copies.push_back({to, from, bytes});
}

inline void __pipeline_commit() { cuemu::current->commits.push_back(cuemu::current->copies.size()); }

// All but the last `prior` commits.
inline void __pipeline_wait_prior(size_t prior) {
  auto& copies = cuemu::current->copies;
  auto& commits = cuemu::current->commits;
  if (commits.size() <= prior) return;
  const size_t done = commits[commits.size() - 1 - prior];
  for (size_t i = 0; i < done; ++i) std::memcpy(copies[i].to, copies[i].from, copies[i].bytes);
  copies.erase(copies.begin(), copies.begin() + static_cast<ptrdiff_t>(done));
  commits.erase(commits.begin(), commits.end() - static_cast<ptrdiff_t>(prior));
  for (size_t& count : commits) count -= done;
}
