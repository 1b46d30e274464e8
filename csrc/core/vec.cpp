// Dispatch of the row operations, and the portable unit.
#include "core/vec.h"

#include "core/target.h"
#include "core/vec_tables.h"

namespace pcm {
namespace {

typedef float Float4 __attribute__((vector_size(16)));
typedef int32_t Int4 __attribute__((vector_size(16)));

struct V4 {
  using R = Float4;
  static constexpr int kLanes = 4;
  static PCM_INLINE R set(float x) { return R{x, x, x, x}; }
  static PCM_INLINE R load(const float* p) {
    R x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
  }
  static PCM_INLINE void store(float* p, R x) { __builtin_memcpy(p, &x, sizeof x); }
  static PCM_INLINE R add(R a, R b) { return a + b; }
  static PCM_INLINE R sub(R a, R b) { return a - b; }
  static PCM_INLINE R mul(R a, R b) { return a * b; }
  static PCM_INLINE R div(R a, R b) { return a / b; }
  static PCM_INLINE R madd(R a, R b, R c) { return a * b + c; }
  static PCM_INLINE R pick(Int4 mask, R x, R y) { return (R)(((Int4)x & mask) | ((Int4)y & ~mask)); }
  static PCM_INLINE R max(R a, R b) { return pick(a > b, a, b); }
  static PCM_INLINE R abs(R a) { return (R)((Int4)a & 0x7fffffff); }
  static PCM_INLINE R copysign(R a, R b) { return (R)((Int4)a | ((Int4)b & ~0x7fffffff)); }
  // For |a| < 2^22: the sum has no bits left below 1 and is rounded to even.
  static PCM_INLINE R round(R a) {
    const R big = set(0x1.8p23f);
    return (a + big) - big;
  }
  static PCM_INLINE R times_pow2(R a, R n) {
    const Int4 k = __builtin_convertvector(pick(n == n, n, set(0.f)), Int4), half = k >> 1, other = k - half;
    return a * (R)((half + 127) << 23) * (R)((other + 127) << 23);
  }
  static PCM_INLINE R select_lt(R a, R b, R x, R y) { return pick(a < b, x, y); }
  static PCM_INLINE float sum(R a) { return (a[0] + a[2]) + (a[1] + a[3]); }
  static PCM_INLINE float top(R a) {
    const float x = a[0] > a[1] ? a[0] : a[1], y = a[2] > a[3] ? a[2] : a[3];
    return x > y ? x : y;
  }
  static PCM_INLINE float first(R a) { return a[0]; }
  template <class S>
  static PCM_INLINE R load_16(const S* p) {
    return R{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])};
  }
  template <class S>
  static PCM_INLINE void store_16(S* p, R x) {
    for (int i = 0; i < 4; i++) from_float(x[i], p + i);
  }
  static PCM_INLINE R load_bf16(const bf16* p) { return load_16(p); }
  static PCM_INLINE void store_bf16(bf16* p, R x) { store_16(p, x); }
  static PCM_INLINE R load_f16(const f16* p) { return load_16(p); }
  static PCM_INLINE void store_f16(f16* p, R x) { store_16(p, x); }
};

#include "core/vec_kernels.inl"
#include "core/rows_kernels.inl"

const VecOps kPortable = table<V4>(Isa::portable);
const RowOps kPortableRows = row_table<V4>(Isa::portable);

}  // namespace

const VecOps& vec_ops(Isa level) {
#if PCM_X86
  if (level >= Isa::avx512_bf16) return kVecAvx512Bf16;
  if (level >= Isa::avx512) return kVecAvx512;
  if (level >= Isa::avx2) return kVecAvx2;
#endif
  (void)level;
  return kPortable;
}

const RowOps& row_ops(Isa level) {
#if PCM_X86
  if (level >= Isa::avx512_bf16) return kRowsAvx512Bf16;
  if (level >= Isa::avx512) return kRowsAvx512;
  if (level >= Isa::avx2) return kRowsAvx2;
#endif
  (void)level;
  return kPortableRows;
}

}  // namespace pcm
