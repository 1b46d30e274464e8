// Tile products of bf16 with AMX: 2 x 2 tiles of 16 x 16 floats, 32 steps of K per multiply.
//
// PCM_AMX_EMULATION names a header that replaces the six tile instructions by software, so that this file can be tested
// on a processor without them (tests/csrc).
#include "core/gemm_tables.h"
#include "core/target.h"

#if defined(PCM_AMX_EMULATION)
#include PCM_AMX_EMULATION
#elif PCM_X86
#include <immintrin.h>
#endif

#if PCM_X86 || defined(PCM_AMX_EMULATION)
#if !defined(PCM_AMX_EMULATION)
PCM_TARGET_BEGIN(PCM_AMX)
#endif
namespace pcm {
namespace {

constexpr int kTileRows = 16, kTileK = 32;

struct alignas(64) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);

// The tile instructions reach memory behind the compiler's back: GCC 12 drops or moves plain stores around them.
PCM_INLINE void memory_fence() { __asm__ volatile("" ::: "memory"); }

void begin_tiles() {
  TileConfig config = {};
  config.palette = 1;
  for (int t = 0; t < 8; t++) {
    config.row_bytes[t] = 64;
    config.rows[t] = kTileRows;
  }
  __asm__ volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
}

void end_tiles() { _tile_release(); }

// C[16 * TM, 16 * TN] (+)= A B for one panel; k a multiple of 32.
template <int TM, int TN>
PCM_INLINE void tiles(int k, const bf16* a, int64_t lda, const bf16* b, float* c, int64_t ldc, bool add) {
  const int64_t c_bytes = ldc * 4, a_bytes = lda * 2, b_bytes = kPanel * 4;
  float* c2 = c + kTileRows * ldc;
  const bf16* a2 = a + kTileRows * lda;
  memory_fence();
  if (add) {
    _tile_loadd(0, c, c_bytes);
    if constexpr (TN > 1) _tile_loadd(1, c + 16, c_bytes);
    if constexpr (TM > 1) _tile_loadd(2, c2, c_bytes);
    if constexpr (TM > 1 && TN > 1) _tile_loadd(3, c2 + 16, c_bytes);
  } else {
    _tile_zero(0);
    if constexpr (TN > 1) _tile_zero(1);
    if constexpr (TM > 1) _tile_zero(2);
    if constexpr (TM > 1 && TN > 1) _tile_zero(3);
  }
  for (int i = 0; i < k; i += kTileK) {
    // A row of a B tile holds 16 columns of a pair of K: 32 elements; two such tiles lie side by side in a panel.
    const bf16* bi = b + i * kPanel;
    _tile_loadd(4, a + i, a_bytes);
    _tile_loadd(6, bi, b_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (TN > 1) {
      _tile_loadd(7, bi + 32, b_bytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (TM > 1) {
      _tile_loadd(5, a2 + i, a_bytes);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (TN > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c, c_bytes);
  if constexpr (TN > 1) _tile_stored(1, c + 16, c_bytes);
  if constexpr (TM > 1) _tile_stored(2, c2, c_bytes);
  if constexpr (TM > 1 && TN > 1) _tile_stored(3, c2 + 16, c_bytes);
  memory_fence();
}

template <int TN>
void full_rows(int m, int k, const bf16* a, int64_t lda, const bf16* b, float* c, int64_t ldc, bool add) {
  int i = 0;
  for (; i + 2 * kTileRows <= m; i += 2 * kTileRows) tiles<2, TN>(k, a + i * lda, lda, b, c + i * ldc, ldc, add);
  if (i < m) tiles<1, TN>(k, a + i * lda, lda, b, c + i * ldc, ldc, add);
}

void panels(int m, int n, int k, const bf16* a, int64_t lda, const bf16* b, int64_t panel, float* c, int64_t ldc,
            bool add) {
  for (int j = 0; j < n; j += kPanel, b += panel)
    n - j > 16 ? full_rows<2>(m, k, a, lda, b, c + j, ldc, add) : full_rows<1>(m, k, a, lda, b, c + j, ldc, add);
}

// Fewer than 16 rows left: through a tile of its own, so that no row of A or C beyond m is touched.
void last_rows(int m, int n, int k, const bf16* a, int64_t lda, const bf16* b, int64_t panel, float* c, int64_t ldc,
               bool add) {
  constexpr int kChunk = 256;
  alignas(64) bf16 rows[kTileRows * kChunk];
  alignas(64) float out[kTileRows * kPanel];
  for (int i = 0; i < k; i += kChunk) {
    const int steps = k - i < kChunk ? k - i : kChunk;
    for (int r = 0; r < m; r++) __builtin_memcpy(rows + r * kChunk, a + r * lda + i, steps * sizeof(bf16));
    for (int r = m; r < kTileRows; r++) __builtin_memset(rows + r * kChunk, 0, steps * sizeof(bf16));
    const bf16* bi = b + i * kPanel;
    for (int j = 0; j < n; j += kPanel, bi += panel) {
      const int width = n - j > 16 ? kPanel : 16;
      if (width > 16)
        tiles<1, 2>(steps, rows, kChunk, bi, out, kPanel, false);
      else
        tiles<1, 1>(steps, rows, kChunk, bi, out, kPanel, false);
      for (int r = 0; r < m; r++)
        for (int v = 0; v < width; v++)
          c[r * ldc + j + v] = (add || i ? c[r * ldc + j + v] : 0.f) + out[r * kPanel + v];
    }
  }
}

void product(int m, int n, int k, const bf16* a, int64_t lda, const bf16* b, int64_t panel, float* c, int64_t ldc,
             bool add) {
  k = (k + kTileK - 1) / kTileK * kTileK;
  const int full = m / kTileRows * kTileRows;
  if (full) panels(full, n, k, a, lda, b, panel, c, ldc, add);
  if (full < m) last_rows(m - full, n, k, a + full * lda, lda, b, panel, c + full * ldc, ldc, add);
}

}  // namespace

extern const TileGemm<bf16> kGemmBf16Amx = {Isa::amx, kTileK, product, begin_tiles, end_tiles};

}  // namespace pcm
#if !defined(PCM_AMX_EMULATION)
PCM_TARGET_END
#endif
#endif
