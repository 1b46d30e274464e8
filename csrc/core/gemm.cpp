// Dispatch of the tile products, the portable kernel and the packing of their operand B.
#include "core/gemm.h"

#include <cstring>

#include "core/gemm_tables.h"
#include "core/target.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace pcm {
namespace {

#include "core/gemm_kernels.inl"

// Four floats in whatever the compiler has for them (SSE2, NEON, plain code).
typedef float Float4 __attribute__((vector_size(16)));

struct Portable {
  using E = float;
  using Acc = Float4;
  using B = Float4;
  static constexpr int kStep = 1, kLanes = 4, kRows = 4, kCols = 2;
  static PCM_INLINE Acc zero() { return Acc{}; }
  static PCM_INLINE Acc load(const float* p) {
    Acc x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
  }
  static PCM_INLINE void store(float* p, Acc x) { __builtin_memcpy(p, &x, sizeof x); }
  static PCM_INLINE B load_b(const float* p) { return load(p); }
  static PCM_INLINE B broadcast(const float* p) { return B{*p, *p, *p, *p}; }
  static PCM_INLINE Acc madd(Acc acc, B a, B b) { return acc + a * b; }
};

const TileGemm<float> kPortable = {Isa::portable, 1, product<Portable>, nothing, nothing};

#if defined(__SSE2__)
// out[j][i] = in[i][j] for 4 x 4 words of 32 bits; strides in words.
inline void transpose4(uint32_t* out, const char* in, int64_t in_bytes) {
  const auto row = [&](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i * in_bytes)); };
  const __m128i a = _mm_unpacklo_epi32(row(0), row(1)), b = _mm_unpackhi_epi32(row(0), row(1));
  const __m128i c = _mm_unpacklo_epi32(row(2), row(3)), d = _mm_unpackhi_epi32(row(2), row(3));
  const auto put = [&](int j, __m128i x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(out + j * kPanel), x); };
  put(0, _mm_unpacklo_epi64(a, c));
  put(1, _mm_unpackhi_epi64(a, c));
  put(2, _mm_unpacklo_epi64(b, d));
  put(3, _mm_unpackhi_epi64(b, d));
}
#endif

// One panel of 32 rows -> columns of 32-bit words (a float, or a pair of bf16). `words` whole words a row.
template <class E>
void transpose_panel(uint32_t* out, const E* rows, int64_t stride, int64_t n, int64_t words) {
  const char* in = reinterpret_cast<const char*>(rows);
  const int64_t bytes = stride * static_cast<int64_t>(sizeof(E));
  int64_t done = 0;  // words of every row that are already in place
#if defined(__SSE2__)
  done = words / 4 * 4;
  const int64_t whole = n / 4 * 4;
  for (int64_t j = 0; j < done; j += 4)
    for (int64_t i = 0; i < whole; i += 4) transpose4(out + j * kPanel + i, in + i * bytes + j * 4, bytes);
  for (int64_t i = whole; i < n; i++)
    for (int64_t j = 0; j < done; j++) std::memcpy(out + j * kPanel + i, in + i * bytes + j * 4, 4);
#endif
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = done; j < words; j++) std::memcpy(out + j * kPanel + i, in + i * bytes + j * 4, 4);
  if (n < kPanel)
    for (int64_t j = 0; j < words; j++) std::memset(out + j * kPanel + n, 0, (kPanel - n) * 4);
}

template <class E>
void pack_keys_plain(E* out, const E* rows, int64_t stride, int64_t n, int64_t d, int64_t d_padded) {
  constexpr int64_t kPair = 4 / sizeof(E);
  const int64_t words = d / kPair;
  for (int64_t i = 0; i < n; i += kPanel, out += d_padded * kPanel) {
    const int64_t count = n - i < kPanel ? n - i : kPanel;
    const E* from = rows + i * stride;
    transpose_panel(reinterpret_cast<uint32_t*>(out), from, stride, count, words);
    std::memset(out + words * kPair * kPanel, 0, (d_padded - words * kPair) * kPanel * sizeof(E));
    if (words * kPair < d)  // odd d: half a pair
      for (int64_t r = 0; r < count; r++) out[words * kPair * kPanel + r * kPair] = from[r * stride + d - 1];
  }
}

void value_panel(float* out, const float* rows, int64_t stride, int64_t n, int64_t width) {
  for (int64_t i = 0; i < n; i++) {
    std::memcpy(out + i * kPanel, rows + i * stride, width * sizeof(float));
    if (width < kPanel) std::memset(out + i * kPanel + width, 0, (kPanel - width) * sizeof(float));
  }
}

void value_panel(bf16* out, const bf16* rows, int64_t stride, int64_t n, int64_t width) {
  for (int64_t i = 0; i < n; i += 2) {
    const bf16 *a = rows + i * stride, *b = a + stride;
    bf16* to = out + i * kPanel;
    const bool pair = i + 1 < n;
    int64_t j = 0;
#if defined(__SSE2__)
    for (; j + 8 <= width; j += 8) {
      const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(a + j));
      const __m128i y = pair ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(b + j)) : _mm_setzero_si128();
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 2 * j), _mm_unpacklo_epi16(x, y));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 2 * j + 8), _mm_unpackhi_epi16(x, y));
    }
#endif
    for (; j < width; j++) {
      to[2 * j] = a[j];
      to[2 * j + 1] = pair ? b[j] : bf16{0};
    }
    if (j < kPanel) std::memset(to + 2 * j, 0, (kPanel - j) * 2 * sizeof(bf16));
  }
}

template <class E>
void pack_values_plain(E* out, const E* rows, int64_t stride, int64_t n, int64_t d, int64_t n_rows, int64_t panel) {
  constexpr int64_t kPair = 4 / sizeof(E);
  const int64_t filled = round_up(n, kPair);
  for (int64_t j = 0; j < d; j += kPanel, out += panel) {
    value_panel(out, rows + j, stride, n, d - j < kPanel ? d - j : kPanel);
    if (filled < n_rows) std::memset(out + filled * kPanel, 0, (n_rows - filled) * kPanel * sizeof(E));
  }
}

// Widened rows go through a buffer, 32 x up to 256 floats at a time, and then the plain way.
constexpr int64_t kWide = 256;

template <class S>
void widen(float* out, const S* rows, int64_t stride, int64_t n, int64_t d) {
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < d; j++) out[i * kWide + j] = to_float(rows[i * stride + j]);
}

template <class S>
void pack_keys_wide(float* out, const S* rows, int64_t stride, int64_t n, int64_t d, int64_t d_padded) {
  alignas(64) float wide[kPanel * kWide];
  for (int64_t i = 0; i < n; i += kPanel, out += d_padded * kPanel) {
    const int64_t count = n - i < kPanel ? n - i : kPanel;
    for (int64_t j = 0; j < d; j += kWide) {
      const int64_t part = d - j < kWide ? d - j : kWide;
      widen(wide, rows + i * stride + j, stride, count, part);
      transpose_panel(reinterpret_cast<uint32_t*>(out + j * kPanel), wide, kWide, count, part);
    }
    std::memset(out + d * kPanel, 0, (d_padded - d) * kPanel * sizeof(float));
  }
}

template <class S>
void pack_values_wide(float* out, const S* rows, int64_t stride, int64_t n, int64_t d, int64_t n_rows, int64_t panel) {
  for (int64_t j = 0; j < d; j += kPanel, out += panel) {
    const int64_t width = d - j < kPanel ? d - j : kPanel;
    for (int64_t i = 0; i < n; i++) {
      for (int64_t v = 0; v < width; v++) out[i * kPanel + v] = to_float(rows[i * stride + j + v]);
      for (int64_t v = width; v < kPanel; v++) out[i * kPanel + v] = 0.f;
    }
    if (n < n_rows) std::memset(out + n * kPanel, 0, (n_rows - n) * kPanel * sizeof(float));
  }
}

}  // namespace

const TileGemm<float>& gemm_f32(Isa level) {
#if PCM_X86
  if (level >= Isa::avx512) return kGemmAvx512;
  if (level >= Isa::avx2) return kGemmAvx2;
#endif
  (void)level;
  return kPortable;
}

const TileGemm<bf16>* gemm_bf16(Isa level) {
#if PCM_X86
  if (level >= Isa::amx) return &kGemmBf16Amx;
  if (level >= Isa::avx512_bf16) return &kGemmBf16Avx512;
#endif
  (void)level;
  return nullptr;
}

void pack_keys(float* out, const float* rows, int64_t stride, int64_t n, int64_t d, int64_t d_padded) {
  pack_keys_plain(out, rows, stride, n, d, d_padded);
}
void pack_keys(bf16* out, const bf16* rows, int64_t stride, int64_t n, int64_t d, int64_t d_padded) {
  pack_keys_plain(out, rows, stride, n, d, d_padded);
}
void pack_keys(float* out, const bf16* rows, int64_t stride, int64_t n, int64_t d, int64_t d_padded) {
  pack_keys_wide(out, rows, stride, n, d, d_padded);
}
void pack_keys(float* out, const f16* rows, int64_t stride, int64_t n, int64_t d, int64_t d_padded) {
  pack_keys_wide(out, rows, stride, n, d, d_padded);
}
void pack_values(float* out, const float* rows, int64_t stride, int64_t n, int64_t d, int64_t n_rows, int64_t panel) {
  pack_values_plain(out, rows, stride, n, d, n_rows, panel);
}
void pack_values(bf16* out, const bf16* rows, int64_t stride, int64_t n, int64_t d, int64_t n_rows, int64_t panel) {
  pack_values_plain(out, rows, stride, n, d, n_rows, panel);
}
void pack_values(float* out, const bf16* rows, int64_t stride, int64_t n, int64_t d, int64_t n_rows, int64_t panel) {
  pack_values_wide(out, rows, stride, n, d, n_rows, panel);
}
void pack_values(float* out, const f16* rows, int64_t stride, int64_t n, int64_t d, int64_t n_rows, int64_t panel) {
  pack_values_wide(out, rows, stride, n, d, n_rows, panel);
}

}  // namespace pcm
