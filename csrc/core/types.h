// The 16-bit storage types and their exact scalar conversions. Torch-free, header only.
#pragma once

#include <cstdint>

namespace pcm {

enum class Type { f32, bf16, f16 };

// Bit patterns only: arithmetic happens in float.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

static inline float bits_to_float(uint32_t u) {
  float x;
  __builtin_memcpy(&x, &u, 4);
  return x;
}

static inline uint32_t float_to_bits(float x) {
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  return u;
}

static inline float to_float(float x) { return x; }
static inline float to_float(bf16 x) { return bits_to_float(static_cast<uint32_t>(x.bits) << 16); }

static inline float to_float(f16 h) {
  const uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000) << 16, rest = h.bits & 0x7fff;
  if (rest >= 0x7c00) return bits_to_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);  // infinity, NaN
  if (rest >= 0x400) return bits_to_float(sign | ((rest << 13) + (112u << 23)));       // normal
  const float tiny = static_cast<float>(rest) * 0x1p-24f;                              // subnormal, zero
  return sign ? -tiny : tiny;
}

// To nearest, ties to even; a NaN stays a (quiet) NaN.
static inline void from_float(float x, float* out) { *out = x; }
static inline void from_float(float x, bf16* out) {
  const uint32_t u = float_to_bits(x);
  if ((u & 0x7fffffff) > 0x7f800000)
    out->bits = static_cast<uint16_t>(u >> 16 | 0x40);
  else
    out->bits = static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
static inline void from_float(float x, f16* out) {
  const uint32_t u = float_to_bits(x), sign = u >> 16 & 0x8000, rest = u & 0x7fffffff;
  uint32_t h;
  if (rest > 0x7f800000) {
    h = 0x7e00;
  } else if (rest >= 0x477ff000) {
    h = 0x7c00;
  } else if (rest >= 0x38800000) {
    h = (rest - (112u << 23) + 0xfff + (rest >> 13 & 1)) >> 13;
  } else {
    // Adding 0.5 leaves the subnormal's bits, rounded to even, in the low end of the sum's significand.
    h = float_to_bits(bits_to_float(rest) + 0.5f) - float_to_bits(0.5f);
  }
  out->bits = static_cast<uint16_t>(sign | h);
}

static inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

}  // namespace pcm
