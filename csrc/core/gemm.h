// Small matrix products inside fused kernels: C[M,N] (+)= A[M,K] B[K,N], B packed, sums in float32. Torch-free.
//
// Two families: float operands, and bf16 operands where the processor multiplies them (AVX512-BF16, AMX). For other
// storage types and processors the packers widen to float, so no conversion is left in the inner loop.
//
//   A  row-major, row stride lda; the columns [K, k_padded(K)) are read and must be finite
//   B  packed in panels of 32 columns; panel p begins at b + p * panel. Inside a panel the order is
//      float [K][32], bf16 [K/2][32][2]; rows up to k_padded(K) and columns up to 32 are zero
//   C  row-major, row stride ldc; the columns up to n_padded(N) are written, the padded ones with products of zeros
//
// Since panels carry their own stride, a range of keys [k0, k0 + K) of a packed V is the operand (v + k0 * 32, same
// panel), k0 a multiple of k_step; and any 32 keys of a packed K^T are a panel.
#pragma once

#include <cstdint>

#include "core/cpu.h"
#include "core/types.h"

namespace pcm {

constexpr int kPanel = 32;

inline int64_t n_padded(int64_t n) { return round_up(n, 16); }

template <class E>  // float or bf16
struct TileGemm {
  Isa isa;
  int k_step;  // granule of K: 1 for float, 2 for AVX512-BF16, 32 for AMX
  // add: C += A B, else C = A B. m, n, k > 0.
  void (*run)(int m, int n, int k, const E* a, int64_t lda, const E* b, int64_t panel, float* c, int64_t ldc, bool add);
  // Around a thread's products: AMX loads its tile configuration and releases it; nothing elsewhere.
  void (*begin)();
  void (*end)();

  int64_t k_padded(int64_t k) const { return round_up(k, k_step); }
};

// The family for a level; levels above what has a kernel of its own use the next one below.
const TileGemm<float>& gemm_f32(Isa level = isa());
// Null where the level multiplies no bf16: widen to float there.
const TileGemm<bf16>* gemm_bf16(Isa level = isa());

// Scope of a thread's products.
template <class E>
class GemmScope {
 public:
  explicit GemmScope(const TileGemm<E>& g) : g_(g) { g_.begin(); }
  ~GemmScope() { g_.end(); }
  GemmScope(const GemmScope&) = delete;
  GemmScope& operator=(const GemmScope&) = delete;

 private:
  const TileGemm<E>& g_;
};

// K^T as operand B of Q K^T. Source: n rows (keys) of d elements, row stride `stride` in elements. Destination:
// [ceil(n/32)] panels of d_padded * 32 elements (d_padded = k_padded(d)), contiguous; d beyond and keys beyond n are
// zero.
void pack_keys(float* out, const float* rows, int64_t stride, int64_t n, int64_t d, int64_t d_padded);
void pack_keys(bf16* out, const bf16* rows, int64_t stride, int64_t n, int64_t d, int64_t d_padded);
void pack_keys(float* out, const bf16* rows, int64_t stride, int64_t n, int64_t d, int64_t d_padded);
void pack_keys(float* out, const f16* rows, int64_t stride, int64_t n, int64_t d, int64_t d_padded);

// V as operand B of P V. Source as above. Destination: [ceil(d/32)] panels, `panel` elements apart, of which the rows
// [0, n_rows) are written, n_rows = k_padded(n) <= panel / 32; rows beyond n and columns beyond d are zero.
void pack_values(float* out, const float* rows, int64_t stride, int64_t n, int64_t d, int64_t n_rows, int64_t panel);
void pack_values(bf16* out, const bf16* rows, int64_t stride, int64_t n, int64_t d, int64_t n_rows, int64_t panel);
void pack_values(float* out, const bf16* rows, int64_t stride, int64_t n, int64_t d, int64_t n_rows, int64_t panel);
void pack_values(float* out, const f16* rows, int64_t stride, int64_t n, int64_t d, int64_t n_rows, int64_t panel);

}  // namespace pcm
