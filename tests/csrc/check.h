// What the plain C++ tests share: checks that end the program, buffers of exact size, random numbers.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <vector>

#include "core/cpu.h"
#include "core/types.h"

#define CHECK(condition, ...)                                              \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::fprintf(stderr, __VA_ARGS__);                                   \
      std::fprintf(stderr, "\n");                                          \
      std::exit(1);                                                        \
    }                                                                      \
  } while (0)

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// A heap block of exactly n elements, so that the address sanitizer sees the first step beyond it; filled with NaN.
template <class T>
struct Exact {
  int64_t n;
  std::unique_ptr<T[]> p;
  explicit Exact(int64_t n) : n(n), p(new T[n]) {
    for (int64_t i = 0; i < n; i++) pcm::from_float(kNan, &p[i]);
  }
  T* data() { return p.get(); }
  T& operator[](int64_t i) { return p[i]; }
  float at(int64_t i) const { return pcm::to_float(p[i]); }
};

// A small generator: the same numbers on every platform.
struct Random {
  uint64_t s = 0x9e3779b97f4a7c15;
  uint32_t next() {
    s = s * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<uint32_t>(s >> 33);
  }
  float uniform() { return static_cast<float>(next()) / 1073741824.f - 1.f; }  // [-1, 1)
};

inline std::vector<pcm::Isa> levels() {
  std::vector<pcm::Isa> out;
  for (int i = 0; i <= static_cast<int>(pcm::isa()); i++) out.push_back(static_cast<pcm::Isa>(i));
  return out;
}
