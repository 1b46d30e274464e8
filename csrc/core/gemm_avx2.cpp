// Tile products with AVX2 and FMA: blocks of 6 x 16 floats, 12 of the 16 registers.
#include "core/gemm_tables.h"
#include "core/target.h"

#if PCM_X86
#include <immintrin.h>

PCM_TARGET_BEGIN(PCM_AVX2)
namespace pcm {
namespace {

#include "core/gemm_kernels.inl"

struct Avx2 {
  using E = float;
  using Acc = __m256;
  using B = __m256;
  static constexpr int kStep = 1, kLanes = 8, kRows = 6, kCols = 2;
  static PCM_INLINE Acc zero() { return _mm256_setzero_ps(); }
  static PCM_INLINE Acc load(const float* p) { return _mm256_loadu_ps(p); }
  static PCM_INLINE void store(float* p, Acc x) { _mm256_storeu_ps(p, x); }
  static PCM_INLINE B load_b(const float* p) { return _mm256_loadu_ps(p); }
  static PCM_INLINE B broadcast(const float* p) { return _mm256_broadcast_ss(p); }
  static PCM_INLINE Acc madd(Acc acc, B a, B b) { return _mm256_fmadd_ps(a, b, acc); }
};

}  // namespace

extern const TileGemm<float> kGemmAvx2 = {Isa::avx2, Avx2::kStep, product<Avx2>, nothing, nothing};

}  // namespace pcm
PCM_TARGET_END
#endif
