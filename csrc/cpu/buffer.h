// Scratch memory of the CPU kernels.
#pragma once
#include <cstdint>
#include <memory>
#include <new>

namespace ficoco {

// Room for `count` uninitialized numbers. It starts on a cache line, so that no vector need straddle two.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count) : data_(static_cast<T*>(::operator new(count * sizeof(T), kLine))) {}

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  T& operator[](int64_t i) { return data_[i]; }
  T operator[](int64_t i) const { return data_[i]; }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Free {
    void operator()(T* data) const { ::operator delete(data, kLine); }
  };
  std::unique_ptr<T[], Free> data_;
};

}  // namespace ficoco
