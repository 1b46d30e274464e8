// Attention of packed rows over their own keys and over shared keys; the op is described in
// pycotmech/ops/prefix_attn.py.
#pragma once

#include <cstdint>
#include <functional>

#include "core/cpu.h"
#include "core/types.h"

namespace pcm {

// A [rows, heads, D] operand: the first element and the strides in elements; D is contiguous.
struct PackedHeads {
  const void* data;
  int64_t row, head;
};

struct PrefixAttn {
  Type type;
  int64_t R, H, Hkv, D;
  PackedHeads q, k_shared, v_shared, k_own, v_own;
  const int32_t* rows;  // [R][4] = (own_lo, own_hi, shared_lo, shared_hi), already checked against the sizes
  const int32_t* cuts;  // [E][4] = (row, head or -1, lo, hi), already checked; null if E = 0
  int64_t E;
  float scale;
  int64_t window;  // 0: none
  float softcap;   // 0: none
  const float* sinks = nullptr;  // [H], logits without a value; null: none
  void* z;         // [R][H][D], contiguous, of `type`
  float* lse;      // [R][H]
};

// Calls body(begin, end) on disjoint parts of [0, n), on as many threads as it likes. The result does not depend on the
// cut.
using ParallelFor = std::function<void(int64_t n, const std::function<void(int64_t, int64_t)>& body)>;

// level: the instruction set to use, for tests; no higher than isa().
void prefix_attn(const PrefixAttn& a, const ParallelFor& parallel, Isa level = isa());

}  // namespace pcm
