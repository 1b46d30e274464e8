// Row operations with AVX-512 and its conversion to bf16 (which flushes subnormal numbers to zero).
#include "core/target.h"
#include "core/vec_tables.h"

#if PCM_X86
#include <immintrin.h>

PCM_TARGET_BEGIN(PCM_AVX512_BF16)
namespace pcm {
namespace {

#define PCM_STORE_BF16(p, x) \
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)))
#include "core/vec_avx512.inl"
#include "core/vec_kernels.inl"
#include "core/rows_kernels.inl"

}  // namespace

extern const VecOps kVecAvx512Bf16 = table<V512>(Isa::avx512_bf16);
extern const RowOps kRowsAvx512Bf16 = row_table<V512>(Isa::avx512_bf16);

}  // namespace pcm
PCM_TARGET_END
#endif
