// Row operations of the fused kernels, one table per instruction set: online softmax, exponentials, conversions.
// Torch-free.
#pragma once

#include <cstdint>

#include "core/cpu.h"
#include "core/types.h"

namespace pcm {

// The running maximum of a row that has seen no key yet. Finite, so that no infinity is subtracted from another.
constexpr float kNoScore = -1e30f;

// One step of the online softmax over a tile of scores s[rows][cols]:
//   m' = max(m, max s);  p = exp((s - m') * scale);  f = exp((m - m') * scale);  l = f l + sum p;  acc = f acc
// Begin with m = kNoScore, l = 0, acc = 0 (and u = 0). Afterwards lse = m * scale + ln l, z = acc / l; l = 0: no key.
// A score of -inf is a key that is not seen.
struct SoftmaxTile {
  int rows = 0, cols = 0;  // columns from `cols` to the next multiple of 32 must exist in s and p; p gets zeros there
  float* s = nullptr;      // raw scores (before `scale`); read only, except columns out of range
  int64_t lds = 0;
  float scale = 1;                   // natural units: p = exp(scale * s - ...)
  float *m = nullptr, *l = nullptr;  // [rows]
  float* acc = nullptr;              // [rows][acc_cols], may be null; acc_cols is rounded up to a multiple of 16
  int64_t ld_acc = 0;
  int acc_cols = 0;
  // Columns of each row that are seen, [from, to); null: all of them.
  const int *from = nullptr, *to = nullptr;
  // Optional [rows]: u = f (u + l (m - m') scale) + sum p (s - m') scale. Entropy in nats = ln l - u / l, exact also
  // for peaked rows since nothing large is subtracted.
  float* u = nullptr;
};

// z = acc / l, rounded once, and the rest of a row are the caller's.
struct VecOps {
  Isa isa;
  // p may be tile.s itself. bf16 p is rounded to nearest even; l sums the unrounded values.
  void (*softmax_f32)(const SoftmaxTile& tile, float* p, int64_t ldp);
  void (*softmax_bf16)(const SoftmaxTile& tile, bf16* p, int64_t ldp);
  // y = exp(scale * x - shift), returns the sum of y. Any n; y may be x. Relative error of exp below 2 ulp for results
  // above 2^-126; below that it flushes gradually to 0.
  float (*exp_row)(float* y, const float* x, int64_t n, float scale, float shift);
  // x = cap * tanh(x * scale / cap) on rows x cols.
  void (*softcap)(float* x, int64_t ld, int64_t rows, int64_t cols, float scale, float cap);
  // Storage to float and back; out = round(x * factor).
  void (*to_f32)(float* out, const void* x, Type type, int64_t n);
  void (*from_f32)(void* out, Type type, const float* x, int64_t n, float factor);
  float (*max)(const float* x, int64_t n);  // n = 0: -inf; unspecified if one is NaN
  float (*dot)(const float* x, const float* y, int64_t n);
  void (*axpy)(float* y, float a, const float* x, int64_t n);  // y += a x
  void (*scale)(float* y, float a, int64_t n);                 // y *= a
};

const VecOps& vec_ops(Isa level = isa());

}  // namespace pcm
