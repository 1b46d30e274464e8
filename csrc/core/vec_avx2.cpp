// Row operations with AVX2, FMA and F16C.
#include "core/target.h"
#include "core/vec_tables.h"

#if PCM_X86
#include <immintrin.h>

PCM_TARGET_BEGIN(PCM_AVX2)
namespace pcm {
namespace {

struct V256 {
  using R = __m256;
  static constexpr int kLanes = 8;
  static PCM_INLINE R set(float x) { return _mm256_set1_ps(x); }
  static PCM_INLINE R load(const float* p) { return _mm256_loadu_ps(p); }
  static PCM_INLINE void store(float* p, R x) { _mm256_storeu_ps(p, x); }
  static PCM_INLINE R add(R a, R b) { return _mm256_add_ps(a, b); }
  static PCM_INLINE R sub(R a, R b) { return _mm256_sub_ps(a, b); }
  static PCM_INLINE R mul(R a, R b) { return _mm256_mul_ps(a, b); }
  static PCM_INLINE R div(R a, R b) { return _mm256_div_ps(a, b); }
  static PCM_INLINE R madd(R a, R b, R c) { return _mm256_fmadd_ps(a, b, c); }
  static PCM_INLINE R max(R a, R b) { return _mm256_max_ps(a, b); }
  static PCM_INLINE R abs(R a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.f), a); }
  static PCM_INLINE R copysign(R a, R b) { return _mm256_or_ps(a, _mm256_and_ps(_mm256_set1_ps(-0.f), b)); }
  static PCM_INLINE R round(R a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // In two steps, since 2^n alone leaves the exponent's range where the result is subnormal or 0.
  static PCM_INLINE R times_pow2(R a, R n) {
    const __m256i k = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(k, 1), bias = _mm256_set1_epi32(127);
    const __m256i other = _mm256_sub_epi32(k, half);
    const R x = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
    const R y = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(other, bias), 23));
    return _mm256_mul_ps(_mm256_mul_ps(a, x), y);
  }
  static PCM_INLINE R select_lt(R a, R b, R x, R y) { return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
  static PCM_INLINE float sum(R a) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
  }
  static PCM_INLINE float top(R a) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
  }
  static PCM_INLINE float first(R a) { return _mm256_cvtss_f32(a); }
  static PCM_INLINE R load_bf16(const bf16* p) {
    const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
  }
  static PCM_INLINE void store_bf16(bf16* p, R x) {
    const __m256i u = _mm256_castps_si256(x), upper = _mm256_srli_epi32(u, 16);
    const __m256i odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
    const __m256i y = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd), 16);
    const __m256i nan = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
    const __m256i z = _mm256_blendv_epi8(y, nan, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
    const __m256i h = _mm256_permute4x64_epi64(_mm256_packus_epi32(z, z), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(h));
  }
  static PCM_INLINE R load_f16(const f16* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static PCM_INLINE void store_f16(f16* p, R x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
};

#include "core/vec_kernels.inl"
#include "core/rows_kernels.inl"

}  // namespace

extern const VecOps kVecAvx2 = table<V256>(Isa::avx2);
extern const RowOps kRowsAvx2 = row_table<V256>(Isa::avx2);

}  // namespace pcm
PCM_TARGET_END
#endif
