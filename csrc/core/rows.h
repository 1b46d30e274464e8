// One row of the small fused steps of a transformer layer, one table per instruction set. Torch-free.
#pragma once

#include <cstdint>

#include "core/cpu.h"
#include "core/types.h"

namespace pcm {

// Arithmetic in float32, results rounded once.
struct RowOps {
  Isa isa;
  // x += delta (null: nothing is added); returns the sum of the squares of x.
  float (*add_squares)(float* x, const void* delta, Type delta_type, int64_t n);
  // out = x * factor * weight; out and weight of `type`.
  void (*scale_weight)(void* out, const float* x, const void* weight, Type type, float factor, int64_t n);
  // Turns x[i] with x[half + i] by the angles cos, sin [2 * half], in place.
  void (*rope)(void* x, Type type, const float* cos, const float* sin, int64_t half);
  // out = silu(gate) * up.
  void (*swiglu)(void* out, const void* gate, const void* up, Type type, int64_t n);
};

const RowOps& row_ops(Isa level = isa());

}  // namespace pcm
