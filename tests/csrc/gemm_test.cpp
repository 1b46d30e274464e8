// Tile products and packing against double sums, for every instruction set of this machine (argument "amx": only AMX,
// whose instructions are emulated in that build). Buffers have their exact size, gaps are NaN.
#include "core/gemm.h"

#include <cstring>

#include "check.h"

using namespace pcm;

static Random random_;

template <class T>
static void fill(Exact<T>& x, int64_t rows, int64_t cols, int64_t ld) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < cols; c++) from_float(random_.uniform(), &x[r * ld + c]);
}

// C = Q K^T with packed keys, then C += the same once more.
template <class S, class E>
static void scores(const TileGemm<E>& g, int m, int n, int d) {
  const int64_t dp = g.k_padded(d), lda = dp + 3 * (sizeof(E) == 4) + 4, ldk = d + 5, ldc = n_padded(n) + 3;
  Exact<S> k((n - 1) * ldk + d);
  Exact<E> a((m - 1) * lda + dp), b(round_up(n, kPanel) * dp);
  Exact<float> c((m - 1) * ldc + n_padded(n));
  fill(a, m, d, lda);
  for (int i = 0; i < m; i++)
    for (int64_t j = d; j < dp; j++) from_float(0.f, &a[i * lda + j]);
  fill(k, n, d, ldk);
  pack_keys(b.data(), k.data(), ldk, n, d, dp);
  for (int64_t i = 0; i < b.n; i++) CHECK(b.at(i) == b.at(i), "packed keys keep NaN at %ld", static_cast<long>(i));
  for (int pass = 1; pass <= 2; pass++) {
    g.run(m, n, d, a.data(), lda, b.data(), dp * kPanel, c.data(), ldc, pass == 2);
    for (int i = 0; i < m; i++) {
      for (int j = 0; j < n; j++) {
        double want = 0, size = 0;
        for (int t = 0; t < d; t++) {
          const double term = static_cast<double>(a.at(i * lda + t)) * k.at(j * ldk + t);
          want += pass * term;
          size += pass * std::fabs(term);
        }
        const double error = std::fabs(c[i * ldc + j] - want);
        CHECK(error <= 1e-6 * size + 1e-30, "%s m %d n %d d %d at %d,%d: %g not %g", isa_name(g.isa), m, n, d, i, j,
              c[i * ldc + j], want);
      }
      for (int64_t j = n; j < n_padded(n); j++) CHECK(c[i * ldc + j] == 0, "padded column %ld", static_cast<long>(j));
      if (i + 1 < m)
        for (int64_t j = n_padded(n); j < ldc; j++) CHECK(std::isnan(c[i * ldc + j]), "gap of C written");
    }
  }
}

// Z = P V with a range of keys [k0, k0 + n) of packed values.
template <class S, class E>
static void values(const TileGemm<E>& g, int m, int total, int k0, int n, int d) {
  const int64_t rows = g.k_padded(total), panel = rows * kPanel + 64, ldv = d + 3, np = g.k_padded(n), lda = np + 2;
  Exact<S> v((total - 1) * ldv + d);
  Exact<E> b(round_up(d, kPanel) / kPanel * panel), p((m - 1) * lda + np);
  const int64_t ldc = n_padded(d);
  Exact<float> c(m * ldc);
  fill(v, total, d, ldv);
  fill(p, m, n, lda);
  for (int i = 0; i < m; i++)
    for (int64_t j = n; j < np; j++) from_float(0.f, &p[i * lda + j]);
  pack_values(b.data(), v.data(), ldv, total, d, rows, panel);
  g.run(m, d, n, p.data(), lda, b.data() + static_cast<int64_t>(k0) * kPanel, panel, c.data(), ldc, false);
  for (int i = 0; i < m; i++)
    for (int j = 0; j < ldc; j++) {
      double want = 0, size = 0;
      for (int t = 0; j < d && t < n; t++) {
        const double term = static_cast<double>(p.at(i * lda + t)) * v.at((k0 + t) * ldv + j);
        want += term;
        size += std::fabs(term);
      }
      CHECK(std::fabs(c[i * ldc + j] - want) <= 1e-6 * size, "%s m %d keys %d+%d of %d d %d at %d,%d: %g not %g",
            isa_name(g.isa), m, k0, n, total, d, i, j, c[i * ldc + j], want);
    }
}

template <class S, class E>
static void family(const TileGemm<E>& g) {
  const GemmScope<E> scope(g);
  for (int m : {1, 2, 5, 11, 12, 13, 16, 25, 31, 32, 47})
    for (int n : {1, 15, 16, 17, 32, 40, 64, 77}) scores<S>(g, m, n, 48);
  for (int d : {1, 2, 7, 31, 32, 33, 64, 80, 96, 127, 128, 256, 300, 521}) {
    scores<S>(g, 13, 40, d);
    values<S>(g, 19, 70, 32, 38, d < 300 ? d : 80);
  }
  for (int n : {1, 2, 3, 31, 32, 33, 64, 65, 300}) values<S>(g, 12, n, 0, n, 64);
}

static void conversions() {
  for (uint32_t i = 0; i < 65536; i++) {
    const uint16_t bits = static_cast<uint16_t>(i);
    f16 h{bits}, h2;
    bf16 b{bits}, b2;
    from_float(to_float(h), &h2);
    from_float(to_float(b), &b2);
    CHECK(std::isnan(to_float(h)) ? std::isnan(to_float(h2)) : h2.bits == bits, "f16 %x", i);
    CHECK(std::isnan(to_float(b)) ? std::isnan(to_float(b2)) : b2.bits == bits, "bf16 %x", i);
  }
#if defined(__FLT16_MAX__)
  for (int i = 0; i < 200000; i++) {
    const float x = bits_to_float(random_.next() * 2 + (i & 1));
    f16 h;
    from_float(x, &h);
    const _Float16 want = static_cast<_Float16>(x);
    uint16_t bits;
    std::memcpy(&bits, &want, 2);
    CHECK(std::isnan(x) || h.bits == bits, "f16 of %a is %x, not %x", x, h.bits, bits);
  }
#endif
  bf16 b;
  from_float(bits_to_float(0x3f808000), &b);  // half-way: to even, down
  CHECK(b.bits == 0x3f80, "%x", b.bits);
  from_float(bits_to_float(0x3f818000), &b);  // half-way: to even, up
  CHECK(b.bits == 0x3f82, "%x", b.bits);
}

int main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "amx") == 0) {
    const TileGemm<bf16>& g = *gemm_bf16(Isa::amx);
    CHECK(g.isa == Isa::amx && g.k_step == 32, "no AMX in the table");
    family<bf16>(g);
    std::puts("amx");
    return 0;
  }
  conversions();
  for (Isa level : levels()) {
    family<float>(gemm_f32(level));
    family<bf16>(gemm_f32(level));
    family<f16>(gemm_f32(level));
    if (const TileGemm<bf16>* g = gemm_bf16(level)) family<bf16>(*g);
    std::puts(isa_name(level));
  }
}
