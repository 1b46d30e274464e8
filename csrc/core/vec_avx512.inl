// The AVX-512 unit of vec_kernels.inl; PCM_STORE_BF16(p, x) is how 16 floats are rounded to bf16.

struct V512 {
  using R = __m512;
  static constexpr int kLanes = 16;
  static PCM_INLINE R set(float x) { return _mm512_set1_ps(x); }
  static PCM_INLINE R load(const float* p) { return _mm512_loadu_ps(p); }
  static PCM_INLINE void store(float* p, R x) { _mm512_storeu_ps(p, x); }
  static PCM_INLINE R add(R a, R b) { return _mm512_add_ps(a, b); }
  static PCM_INLINE R sub(R a, R b) { return _mm512_sub_ps(a, b); }
  static PCM_INLINE R mul(R a, R b) { return _mm512_mul_ps(a, b); }
  static PCM_INLINE R div(R a, R b) { return _mm512_div_ps(a, b); }
  static PCM_INLINE R madd(R a, R b, R c) { return _mm512_fmadd_ps(a, b, c); }
  static PCM_INLINE R max(R a, R b) { return _mm512_max_ps(a, b); }
  static PCM_INLINE R abs(R a) { return _mm512_andnot_ps(_mm512_set1_ps(-0.f), a); }
  static PCM_INLINE R copysign(R a, R b) { return _mm512_or_ps(a, _mm512_and_ps(_mm512_set1_ps(-0.f), b)); }
  static PCM_INLINE R round(R a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static PCM_INLINE R times_pow2(R a, R n) { return _mm512_scalef_ps(a, n); }
  static PCM_INLINE R select_lt(R a, R b, R x, R y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
  }
  static PCM_INLINE float sum(R a) { return _mm512_reduce_add_ps(a); }
  static PCM_INLINE float top(R a) { return _mm512_reduce_max_ps(a); }
  static PCM_INLINE float first(R a) { return _mm512_cvtss_f32(a); }
  static PCM_INLINE R load_bf16(const bf16* p) {
    const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
  }
  static PCM_INLINE void store_bf16(bf16* p, R x) { PCM_STORE_BF16(p, x); }
  static PCM_INLINE R load_f16(const f16* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static PCM_INLINE void store_f16(f16* p, R x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
};
