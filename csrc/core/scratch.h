// Memory for packed operands and tiles: 64-byte aligned (AMX tile loads run at half speed otherwise), never
// initialised.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace pcm {

template <class T>
class Scratch {
 public:
  Scratch() = default;
  explicit Scratch(int64_t n) { reserve(n); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }

  // Room for n elements; what was there is lost when it has to grow.
  T* reserve(int64_t n) {
    if (n > size_) {
      std::free(data_);
      const size_t bytes = (static_cast<size_t>(n) * sizeof(T) + 127) / 64 * 64;
      data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
      if (data_ == nullptr) {
        size_ = 0;
        throw std::bad_alloc();
      }
      size_ = n;
    }
    return data_;
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  int64_t size() const { return size_; }

 private:
  T* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace pcm
