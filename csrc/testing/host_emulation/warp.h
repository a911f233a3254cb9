// What threads of a block or lanes of a warp do together: barriers, shuffles, votes, matches, reductions.
#pragma once
#include <bit>
#include <concepts>
#include <type_traits>
#include "block.h"

namespace cuemu {

template <class T>
uint64_t pack(const T& value) {
  static_assert(sizeof(T) <= 8, "a shuffled value has at most 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}
template <class T>
T unpack(uint64_t bits) {
  T value;
  std::memcpy(static_cast<void*>(&value), &bits, sizeof value);
  return value;
}

template <class F>
void for_each_lane(uint32_t members, F f) {
  for (; members != 0; members &= members - 1) f(static_cast<uint32_t>(__builtin_ctz(members)));
}

enum class Shuffle { kIndex, kXor, kDown, kUp };

// A lane that does not take part gives an undefined value; here that is all bits set, NaN in every type.
template <Shuffle>
void shuffle(Thread* lanes, uint32_t members) {
  for_each_lane(members, [&](uint32_t i) {
    lanes[i].result = members >> lanes[i].source & 1 ? lanes[lanes[i].source].value : ~uint64_t{0};
  });
}

template <Shuffle kKind, class T>
T shuffled(uint32_t mask, const T& value, int source, int width, const Location& location) {
  if (width <= 0 || width > 32 || (width & (width - 1)) != 0)
    die("the width of a shuffle is 1, 2, 4, .. 32", &location);
  return unpack<T>(meet(mask, pack(value), static_cast<uint32_t>(source) % 32, &shuffle<kKind>, location));
}

enum class Vote { kAny, kAll, kBallot };

template <Vote>
void vote(Thread* lanes, uint32_t members) {
  uint64_t ballot = 0;
  for_each_lane(members, [&](uint32_t i) { ballot |= lanes[i].value << i; });
  for_each_lane(members, [&](uint32_t i) { lanes[i].result = ballot; });
}

inline void match_any(Thread* lanes, uint32_t members) {
  for_each_lane(members, [&](uint32_t i) {
    lanes[i].result = 0;
    for_each_lane(members, [&](uint32_t j) { lanes[i].result |= uint64_t{lanes[i].value == lanes[j].value} << j; });
  });
}

inline void nothing(Thread*, uint32_t) {}

template <class T, class F>
void reduce(Thread* lanes, uint32_t members) {
  T total = unpack<T>(lanes[__builtin_ctz(members)].value);
  for_each_lane(members & (members - 1), [&](uint32_t i) { total = F{}(total, unpack<T>(lanes[i].value)); });
  for_each_lane(members, [&](uint32_t i) { lanes[i].result = pack(total); });
}

struct Add {
  template <class T>
  T operator()(T a, T b) const {
    return static_cast<T>(static_cast<std::make_unsigned_t<T>>(a) + static_cast<std::make_unsigned_t<T>>(b));
  }
};
struct Min {
  template <class T>
  T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};
struct Max {
  template <class T>
  T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};

}  // namespace cuemu

inline void __syncthreads(CUEMU_LOCATION) { cuemu::barrier(0, location); }
inline int __syncthreads_count(int predicate, CUEMU_LOCATION) { return cuemu::barrier(predicate, location); }
inline int __syncthreads_or(int predicate, CUEMU_LOCATION) { return cuemu::barrier(predicate, location) != 0; }
inline int __syncthreads_and(int predicate, CUEMU_LOCATION) { return cuemu::barrier(predicate == 0, location) == 0; }
inline void __syncwarp(unsigned mask = ~0u, CUEMU_LOCATION) { cuemu::meet(mask, 0, 0, &cuemu::nothing, location); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, CUEMU_LOCATION) {
  const int lane = static_cast<int>(cuemu::current->lane()), first = lane & ~(width - 1);
  return cuemu::shuffled<cuemu::Shuffle::kIndex>(mask, value, first | (source & (width - 1)), width, location);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, CUEMU_LOCATION) {
  const int lane = static_cast<int>(cuemu::current->lane()), last = lane | (width - 1), source = lane ^ bits;
  return cuemu::shuffled<cuemu::Shuffle::kXor>(mask, value, source > last ? lane : source, width, location);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, CUEMU_LOCATION) {
  const int lane = static_cast<int>(cuemu::current->lane()), last = lane | (width - 1);
  const int source = lane + static_cast<int>(delta);
  return cuemu::shuffled<cuemu::Shuffle::kDown>(mask, value, source > last ? lane : source, width, location);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, CUEMU_LOCATION) {
  const int lane = static_cast<int>(cuemu::current->lane()), first = lane & ~(width - 1);
  const int source = lane - static_cast<int>(delta);
  return cuemu::shuffled<cuemu::Shuffle::kUp>(mask, value, source < first ? lane : source, width, location);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, CUEMU_LOCATION) {
  return static_cast<unsigned>(cuemu::meet(mask, predicate != 0, 0, &cuemu::vote<cuemu::Vote::kBallot>, location));
}
inline int __any_sync(unsigned mask, int predicate, CUEMU_LOCATION) {
  return cuemu::meet(mask, predicate != 0, 0, &cuemu::vote<cuemu::Vote::kAny>, location) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUEMU_LOCATION) {
  return cuemu::meet(mask, predicate == 0, 0, &cuemu::vote<cuemu::Vote::kAll>, location) == 0;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, CUEMU_LOCATION) {
  return static_cast<unsigned>(cuemu::meet(mask, cuemu::pack(value), 0, &cuemu::match_any, location));
}
inline unsigned __activemask() { return cuemu::block.warps[cuemu::current->number / 32].live; }

#define CUEMU_REDUCE(name, T, ...)                                                                               \
  inline T __reduce_##name##_sync(unsigned mask, T value, CUEMU_LOCATION) {                                      \
    return cuemu::unpack<T>(cuemu::meet(mask, cuemu::pack(value), 0, &cuemu::reduce<T, __VA_ARGS__>, location)); \
  }
CUEMU_REDUCE(add, unsigned, cuemu::Add)
CUEMU_REDUCE(add, int, cuemu::Add)
CUEMU_REDUCE(min, unsigned, cuemu::Min)
CUEMU_REDUCE(min, int, cuemu::Min)
CUEMU_REDUCE(max, unsigned, cuemu::Max)
CUEMU_REDUCE(max, int, cuemu::Max)
CUEMU_REDUCE(and, unsigned, std::bit_and<unsigned>)
CUEMU_REDUCE(or, unsigned, std::bit_or<unsigned>)
CUEMU_REDUCE(xor, unsigned, std::bit_xor<unsigned>)
#undef CUEMU_REDUCE
