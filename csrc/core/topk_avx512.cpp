// The scan for the largest scores with AVX-512: hits by compare masks, insertion without a branch.
#include "core/target.h"
#include "core/topk_rows.h"

#if PCM_X86
#include <immintrin.h>

PCM_TARGET_BEGIN(PCM_AVX512)
namespace pcm {
namespace {

// Lanes of s[j..j+16) that lie before `to`.
PCM_INLINE __mmask16 lanes(int j, int to) {
  return to - j >= 16 ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << (to - j)) - 1);
}

// A bound that at least k of the scores reach, the k-th largest of the 16 lanes' maxima, less one unit in the last
// place: with it an empty list is not filled by what comes first but by what may stay.
PCM_INLINE __m512 first_threshold(const float* s, int from, int to, int k) {
  const __m512 none = _mm512_set1_ps(-__builtin_inff());
  __m512 top = none;
  for (int j = from; j < to; j += 16)
    // The order of the operands passes over a NaN.
    top = _mm512_mask_max_ps(top, lanes(j, to), _mm512_maskz_loadu_ps(lanes(j, to), s + j), top);
  float kth = 0;
  for (int i = 0; i < k; i++) {
    kth = _mm512_reduce_max_ps(top);
    const unsigned at = _mm512_cmp_ps_mask(top, _mm512_set1_ps(kth), _CMP_EQ_OQ);
    top = _mm512_mask_mov_ps(top, static_cast<__mmask16>(at & (0u - at)), none);
  }
  int32_t bits;
  __builtin_memcpy(&bits, &kth, 4);
  bits = kth == 0 ? static_cast<int32_t>(0x80000001u) : kth > 0 ? bits - 1 : kth == -__builtin_inff() ? bits : bits + 1;
  __builtin_memcpy(&kth, &bits, 4);
  return _mm512_set1_ps(kth);
}

void insert(const float* s, int from, int to, int32_t key0, float* score, int32_t* key, int k) {
  const __m256i down = _mm256_setr_epi32(0, 0, 1, 2, 3, 4, 5, 6), last = _mm256_set1_epi32(k - 1);
  __m256 list = _mm256_loadu_ps(score);
  __m256i keys = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(key));
  __m512 threshold = _mm512_broadcastss_ps(_mm256_castps256_ps128(_mm256_permutevar8x32_ps(list, last)));
  __m512 least = threshold;
  if (to - from >= 32 && score[k - 1] == -__builtin_inff()) threshold = least = first_threshold(s, from, to, k);
  for (int j = from; j < to; j += 16) {
    const __m512 x = _mm512_maskz_loadu_ps(lanes(j, to), s + j);
    unsigned hits = _mm512_mask_cmp_ps_mask(lanes(j, to), x, threshold, _CMP_GT_OQ);
    while (hits != 0) {
      const int lane = __builtin_ctz(hits);
      const __m256 one = _mm256_broadcastss_ps(_mm_load_ss(s + j + lane));
      // Sorted descending: the slots that are at least as large come first and stay, the others move down by one.
      const unsigned stay = _mm256_cmp_ps_mask(list, one, _CMP_GE_OQ), here = stay + 1;
      const __m256 moved = _mm256_mask_mov_ps(_mm256_permutevar8x32_ps(list, down), static_cast<__mmask8>(stay), list);
      const __m256i moved_keys =
          _mm256_mask_mov_epi32(_mm256_permutevar8x32_epi32(keys, down), static_cast<__mmask8>(stay), keys);
      list = _mm256_mask_mov_ps(moved, static_cast<__mmask8>(here), one);
      keys = _mm256_mask_set1_epi32(moved_keys, static_cast<__mmask8>(here), key0 + j + lane);
      threshold =
          _mm512_max_ps(least, _mm512_broadcastss_ps(_mm256_castps256_ps128(_mm256_permutevar8x32_ps(list, last))));
      hits &= hits - 1;
      hits &= _mm512_cmp_ps_mask(x, threshold, _CMP_GT_OQ);
    }
  }
  _mm256_storeu_ps(score, list);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(key), keys);
}

int above(const float* s, int from, int to, float threshold, int32_t* columns) {
  const __m512 t = _mm512_set1_ps(threshold);
  const __m512i step = _mm512_set1_epi32(16);
  const __m512i count = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  __m512i at = _mm512_add_epi32(_mm512_set1_epi32(from), count);
  int n = 0;
  for (int j = from; j < to; j += 16, at = _mm512_add_epi32(at, step)) {
    const __m512 x = _mm512_maskz_loadu_ps(lanes(j, to), s + j);
    const __mmask16 hits = _mm512_mask_cmp_ps_mask(lanes(j, to), x, t, _CMP_GT_OQ);
    _mm512_storeu_si512(columns + n, _mm512_maskz_compress_epi32(hits, at));
    n += __builtin_popcount(hits);
  }
  return n;
}

}  // namespace

extern const TopkOps kTopkAvx512 = {insert, above};

}  // namespace pcm
PCM_TARGET_END
#endif
