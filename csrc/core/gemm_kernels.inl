// The register-blocked product, written once for every vector unit. Included by one file per instruction set, inside an
// anonymous namespace and after PCM_TARGET_BEGIN. Uses nothing from std::.
//
// A unit U has: E (element), Acc and B (registers), kStep (elements of K per multiply: 1 or 2), kRows x kCols (largest
// block of accumulators in rows and registers; kCols * lanes divides 32), zero, load, store, load_b, madd(acc, a*, b).

template <class U, int R, int C>
PCM_INLINE void block(int k, const typename U::E* a, int64_t lda, const typename U::E* b, float* c, int64_t ldc,
                      bool add) {
  typename U::Acc acc[R][C];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int v = 0; v < C; v++) acc[r][v] = add ? U::load(c + r * ldc + v * U::kLanes) : U::zero();
  for (int i = 0; i < k; i += U::kStep) {
    typename U::B col[C];
#pragma GCC unroll 4
    for (int v = 0; v < C; v++) col[v] = U::load_b(b + i * kPanel + v * U::kLanes * U::kStep);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const typename U::B x = U::broadcast(a + r * lda + i);
#pragma GCC unroll 4
      for (int v = 0; v < C; v++) acc[r][v] = U::madd(acc[r][v], x, col[v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int v = 0; v < C; v++) U::store(c + r * ldc + v * U::kLanes, acc[r][v]);
}

template <class U, int R, int C>
void rows_of(int rows, int k, const typename U::E* a, int64_t lda, const typename U::E* b, float* c, int64_t ldc,
             bool add) {
  if constexpr (R > 1) {
    if (rows < R) return rows_of<U, R - 1, C>(rows, k, a, lda, b, c, ldc, add);
  }
  block<U, R, C>(k, a, lda, b, c, ldc, add);
}

// Rows are split into blocks of nearly equal height: a last block of one or two rows would not hide the multiply's
// latency.
template <class U, int C>
void all_rows(int m, int k, const typename U::E* a, int64_t lda, const typename U::E* b, float* c, int64_t ldc,
              bool add) {
  const int blocks = (m + U::kRows - 1) / U::kRows, height = m / blocks, taller = m % blocks;
  for (int i = 0; i < blocks; i++) {
    const int rows = height + (i < taller);
    rows_of<U, U::kRows, C>(rows, k, a, lda, b, c, ldc, add);
    a += rows * lda;
    c += rows * ldc;
  }
}

template <class U>
void product(int m, int n, int k, const typename U::E* a, int64_t lda, const typename U::E* b, int64_t panel, float* c,
             int64_t ldc, bool add) {
  constexpr int kWidth = U::kCols * U::kLanes;
  n = (n + 15) / 16 * 16;
  for (int j = 0; j < n; j += kPanel, b += panel)
    for (int i = 0; i < kPanel && j + i < n; i += kWidth) {
      const typename U::E* bi = b + i * U::kStep;
      // A last half panel of 16 columns; narrower units meet no ragged edge.
      if constexpr (kWidth == kPanel) {
        if (n - j <= kPanel / 2) {
          all_rows<U, U::kCols / 2>(m, k, a, lda, bi, c + j, ldc, add);
          continue;
        }
      } else if constexpr (kWidth < kPanel / 2) {
        static_assert(kPanel / 2 % kWidth == 0);
      }
      all_rows<U, U::kCols>(m, k, a, lda, bi, c + j + i, ldc, add);
    }
}

inline void nothing() {}
