// Tile products of bf16 pairs (vdpbf16ps): the blocks of gemm_avx512.cpp, two steps of K per multiply.
#include "core/gemm_tables.h"
#include "core/target.h"

#if PCM_X86
#include <immintrin.h>

PCM_TARGET_BEGIN(PCM_AVX512_BF16)
namespace pcm {
namespace {

#include "core/gemm_kernels.inl"

struct Avx512Bf16 {
  using E = bf16;
  using Acc = __m512;
  using B = __m512i;
  static constexpr int kStep = 2, kLanes = 16, kRows = 12, kCols = 2;
  static PCM_INLINE Acc zero() { return _mm512_setzero_ps(); }
  static PCM_INLINE Acc load(const float* p) { return _mm512_loadu_ps(p); }
  static PCM_INLINE void store(float* p, Acc x) { _mm512_storeu_ps(p, x); }
  static PCM_INLINE B load_b(const bf16* p) { return _mm512_loadu_si512(p); }
  static PCM_INLINE B broadcast(const bf16* p) {
    int pair;
    __builtin_memcpy(&pair, p, sizeof pair);
    return _mm512_set1_epi32(pair);
  }
  static PCM_INLINE Acc madd(Acc acc, B a, B b) {
    return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};

}  // namespace

extern const TileGemm<bf16> kGemmBf16Avx512 = {Isa::avx512_bf16, Avx512Bf16::kStep, product<Avx512Bf16>, nothing,
                                               nothing};

}  // namespace pcm
PCM_TARGET_END
#endif
