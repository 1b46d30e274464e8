// Query rows as operands of a product with keys. Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/types.h"
#include "core/vec.h"

namespace pcm {

template <class Src>
constexpr Type type_of() {
  return std::is_same_v<Src, float> ? Type::f32 : std::is_same_v<Src, bf16> ? Type::bf16 : Type::f16;
}

// Row maxima are taken before scaling, and what is not seen becomes -inf, so the kernels want a positive scale: its sign
// goes into the query rows.
inline float sign_of(float scale) { return scale > 0 ? 1.f : scale < 0 ? -1.f : 0.f; }
inline float positive(float scale) { return scale == 0 ? 1.f : scale < 0 ? -scale : scale; }

// One query row: d elements times `sign` (1, -1 or 0: exact), zeros up to d_padded.
template <class E, class Src>
void load_row(E* out, const Src* in, int64_t d, int64_t d_padded, float sign, const VecOps& vec) {
  if constexpr (std::is_same_v<E, float>) {
    vec.to_f32(out, in, type_of<Src>(), d);
    if (sign != 1) vec.scale(out, sign, d);
  } else {
    static_assert(std::is_same_v<E, Src>);
    if (sign == 1) {
      std::memcpy(out, in, d * sizeof(E));
    } else {
      const uint16_t flip = sign < 0 ? 0x8000 : 0, keep = sign == 0 ? 0 : 0xffff;
      for (int64_t i = 0; i < d; i++) out[i].bits = static_cast<uint16_t>((in[i].bits ^ flip) & keep);
    }
  }
  std::fill(out + d, out + d_padded, E{0});
}

}  // namespace pcm
