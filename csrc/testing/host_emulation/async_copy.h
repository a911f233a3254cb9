// cp.async by the names that cuda/ptx.cuh gives it. A GPU copies at some time between the start of a copy and the wait
// for it; here that is at the wait (a missing wait shows as NaN), with CUEMU_ORDER=rev at the start (so does a copy to
// what others still read), and with rand either.
#pragma once
#include <cstring>
#include "block.h"

namespace cuemu {

inline void do_copy(const AsyncCopy& copy) {
  if (copy.from == nullptr) {
    std::memset(copy.to, 0, copy.bytes);
  } else {
    std::memcpy(copy.to, copy.from, copy.bytes);
  }
}

template <int kBytes>
void copy_async(void* to, const void* from, bool exists, CUEMU_LOCATION) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "an asynchronous copy has 4, 8 or 16 bytes");
  if (reinterpret_cast<uintptr_t>(to) % kBytes != 0 || reinterpret_cast<uintptr_t>(from) % kBytes != 0) {
    die("an asynchronous copy must be aligned to its size", &location);
  }
  char bytes[kBytes];
  std::memcpy(bytes, to, kBytes);  // a bad address is reported here, by its line
  if (exists) std::memcpy(bytes, from, kBytes);
  const AsyncCopy copy{to, exists ? from : nullptr, kBytes};
  if (copy_at_start()) {
    do_copy(copy);
  } else {
    current->copies.push_back(copy);
  }
}

inline void commit_copies() { current->commits.push_back(current->copies.size()); }

template <int kGroups>
void wait_for_copies() {
  auto& copies = current->copies;
  auto& commits = current->commits;
  if (commits.size() <= kGroups) return;
  const size_t done = commits[commits.size() - 1 - kGroups];
  for (size_t i = 0; i < done; ++i) do_copy(copies[i]);
  copies.erase(copies.begin(), copies.begin() + static_cast<ptrdiff_t>(done));
  commits.erase(commits.begin(), commits.end() - kGroups);
  for (size_t& count : commits) count -= done;
}

}  // namespace cuemu
