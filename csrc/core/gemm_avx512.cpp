// Tile products with AVX-512: blocks of 12 x 32 floats, 24 accumulators; 14 loads feed 24 multiplies.
#include "core/gemm_tables.h"
#include "core/target.h"

#if PCM_X86
#include <immintrin.h>

PCM_TARGET_BEGIN(PCM_AVX512)
namespace pcm {
namespace {

#include "core/gemm_kernels.inl"

struct Avx512 {
  using E = float;
  using Acc = __m512;
  using B = __m512;
  static constexpr int kStep = 1, kLanes = 16, kRows = 12, kCols = 2;
  static PCM_INLINE Acc zero() { return _mm512_setzero_ps(); }
  static PCM_INLINE Acc load(const float* p) { return _mm512_loadu_ps(p); }
  static PCM_INLINE void store(float* p, Acc x) { _mm512_storeu_ps(p, x); }
  static PCM_INLINE B load_b(const float* p) { return _mm512_loadu_ps(p); }
  static PCM_INLINE B broadcast(const float* p) { return _mm512_set1_ps(*p); }
  static PCM_INLINE Acc madd(Acc acc, B a, B b) { return _mm512_fmadd_ps(a, b, acc); }
};

}  // namespace

extern const TileGemm<float> kGemmAvx512 = {Isa::avx512, Avx512::kStep, product<Avx512>, nothing, nothing};

}  // namespace pcm
PCM_TARGET_END
#endif
