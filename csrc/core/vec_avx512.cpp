// Row operations with AVX-512.
#include "core/target.h"
#include "core/vec_tables.h"

#if PCM_X86
#include <immintrin.h>

PCM_TARGET_BEGIN(PCM_AVX512)
namespace pcm {
namespace {

// To nearest, ties to even; NaN stays NaN (its upper half with the quiet bit set).
PCM_INLINE void store_rounded(bf16* p, __m512 x) {
  const __m512i u = _mm512_castps_si512(x), upper = _mm512_srli_epi32(u, 16);
  const __m512i odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
  __m512i y = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd), 16);
  y = _mm512_mask_or_epi32(y, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), upper, _mm512_set1_epi32(0x40));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(y));
}
#define PCM_STORE_BF16(p, x) store_rounded(p, x)
#include "core/vec_avx512.inl"
#include "core/vec_kernels.inl"
#include "core/rows_kernels.inl"

}  // namespace

extern const VecOps kVecAvx512 = table<V512>(Isa::avx512);
extern const RowOps kRowsAvx512 = row_table<V512>(Isa::avx512);

}  // namespace pcm
PCM_TARGET_END
#endif
