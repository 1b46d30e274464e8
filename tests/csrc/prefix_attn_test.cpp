// prefix_attn on ragged tables against double arithmetic, for every instruction set of this machine (argument "amx":
// only AMX, emulated). Operands have their exact size; keys that no row sees are NaN. Work is cut in two different
// ways.
#include "core/prefix_attn.h"

#include <algorithm>
#include <cstring>

#include "check.h"

using namespace pcm;

static Random random_;

template <class T>
struct Case {
  int H, Hkv, D;
  std::vector<int32_t> rows, cuts;
  Exact<T> q, ks, vs, ko, vo;
  int64_t window;
  float softcap;

  Case(int H, int Hkv, int D, std::vector<int> own, std::vector<int> shared, int64_t window, float softcap, bool cut)
      : H(H), Hkv(Hkv), D(D), q(0), ks(0), vs(0), ko(0), vo(0), window(window), softcap(softcap) {
    std::vector<int> base;
    int P = 1, N = 1;  // one unseen key in front of, between and behind all
    for (int n : shared) base.push_back(P), P += n + 1;
    std::vector<int> own_seen, shared_seen;
    for (size_t i = 0; i < own.size(); i++) {
      const int b = static_cast<int>(i % shared.size()), n = std::max(0, shared[b] - static_cast<int>(i % 3));
      for (int t = 0; t < own[i]; t++) rows.insert(rows.end(), {N, N + t + 1, base[b], base[b] + n});
      N += own[i] + 1;
    }
    rows.insert(rows.end(), {1, 1, 1, 1});  // sees nothing
    rows.insert(rows.end(), {1, 3, 0, 0});
    const int R = static_cast<int>(rows.size() / 4);
    q = random(R, H), ks = random(P, Hkv), vs = random(P, Hkv), ko = random(N, Hkv), vo = random(N, Hkv);
    std::vector<bool> seen_s(P), seen_o(N);
    for (int r = 0; r < R; r++) {
      for (int j = rows[4 * r]; j < rows[4 * r + 1]; j++) seen_o[j] = true;
      for (int j = rows[4 * r + 2]; j < rows[4 * r + 3]; j++) seen_s[j] = true;
    }
    for (int j = 0; j < P; j++)
      if (!seen_s[j]) spoil(ks, j), spoil(vs, j);
    for (int j = 0; j < N; j++)
      if (!seen_o[j]) spoil(ko, j), spoil(vo, j);
    if (cut)
      for (int i = 0; i < R; i++) {
        const int32_t lo = static_cast<int32_t>(random_.next() % 300) - 5;
        cuts.insert(cuts.end(), {(i * 7) % R, i % (H + 1) - 1, lo, lo + static_cast<int32_t>(random_.next() % 40)});
      }
  }

  Exact<T> random(int n, int heads) {
    Exact<T> x(static_cast<int64_t>(n) * heads * D);
    for (int64_t i = 0; i < x.n; i++) from_float(2.f * random_.uniform(), &x[i]);
    return x;
  }
  void spoil(Exact<T>& x, int j) {
    for (int i = 0; i < Hkv * D; i++) from_float(kNan, &x[static_cast<int64_t>(j) * Hkv * D + i]);
  }
  bool is_cut(int r, int h, int at) const {
    for (size_t e = 0; e < cuts.size(); e += 4)
      if (cuts[e] == r && (cuts[e + 1] < 0 || cuts[e + 1] == h) && at >= cuts[e + 2] && at < cuts[e + 3]) return true;
    return false;
  }

  // z and lse of one row and head; returns whether a key is seen.
  bool want(int r, int h, float scale, const float* sinks, std::vector<double>& z, double& lse) const {
    const int32_t* e = &rows[4 * r];
    const int n_shared = e[3] - e[2], n = n_shared + e[1] - e[0], hk = h / (H / Hkv);
    std::vector<double> s;
    std::vector<int64_t> at;
    for (int j = 0; j < n; j++) {
      if ((window && n - 1 - j >= window) || is_cut(r, h, j)) continue;
      const bool own = j >= n_shared;
      const int64_t key = (static_cast<int64_t>(own ? e[0] + j - n_shared : e[2] + j) * Hkv + hk) * D;
      double dot = 0;
      for (int i = 0; i < D; i++)
        dot += static_cast<double>(q.at((static_cast<int64_t>(r) * H + h) * D + i)) * (own ? ko : ks).at(key + i);
      dot *= scale;
      s.push_back(softcap > 0 ? softcap * std::tanh(dot / softcap) : dot);
      at.push_back(own ? -1 - key : key);
    }
    z.assign(D, 0);
    if (s.empty()) return false;
    const double top = *std::max_element(s.begin(), s.end());
    double sum = sinks == nullptr ? 0 : std::exp(sinks[h] - top);
    for (size_t j = 0; j < s.size(); j++) {
      const double p = std::exp(s[j] - top);
      sum += p;
      for (int i = 0; i < D; i++) z[i] += p * (at[j] < 0 ? vo.at(-1 - at[j] + i) : vs.at(at[j] + i));
    }
    for (double& x : z) x /= sum;
    lse = top + std::log(sum);
    return true;
  }
};

template <class T>
static void check(Isa level, Type type, const Case<T>& c, double tolerance) {
  const int R = static_cast<int>(c.rows.size() / 4);
  Exact<T> z(static_cast<int64_t>(R) * c.H * c.D), again(z.n);
  Exact<float> lse(R * c.H), lse_again(R * c.H);
  Exact<float> sinks(c.H);  // cases with cuts have sinks too
  for (int h = 0; h < c.H; h++) sinks[h] = 3.f * h - 2;
  PrefixAttn a;
  if (!c.cuts.empty()) a.sinks = sinks.data();
  a.type = type, a.R = R, a.H = c.H, a.Hkv = c.Hkv, a.D = c.D;
  const int64_t row = static_cast<int64_t>(c.Hkv) * c.D;
  a.q = {c.q.p.get(), static_cast<int64_t>(c.H) * c.D, c.D};
  a.k_shared = {c.ks.p.get(), row, c.D}, a.v_shared = {c.vs.p.get(), row, c.D};
  a.k_own = {c.ko.p.get(), row, c.D}, a.v_own = {c.vo.p.get(), row, c.D};
  a.rows = c.rows.data(), a.cuts = c.cuts.data(), a.E = static_cast<int64_t>(c.cuts.size() / 4);
  a.scale = .21f, a.window = c.window, a.softcap = c.softcap, a.z = z.data(), a.lse = lse.data();
  const ParallelFor whole = [](int64_t n, const auto& body) { body(0, n); };
  const ParallelFor thirds = [](int64_t n, const auto& body) {
    for (int64_t i = 3; i-- > 0;) body(n * i / 3, n * (i + 1) / 3);
  };
  prefix_attn(a, whole, level);
  a.z = again.data(), a.lse = lse_again.data();
  prefix_attn(a, thirds, level);
  CHECK(std::memcmp(z.data(), again.data(), z.n * sizeof(T)) == 0, "%s: another cut, another z", isa_name(level));
  CHECK(std::memcmp(lse.data(), lse_again.data(), lse.n * 4) == 0, "%s: another cut, another lse", isa_name(level));
  std::vector<double> want;
  double want_lse = 0;
  for (int r = 0; r < R; r++)
    for (int h = 0; h < c.H; h++) {
      const bool some = c.want(r, h, a.scale, a.sinks, want, want_lse);
      const float l = lse[r * c.H + h];
      CHECK(some ? std::fabs(l - want_lse) < 1e-5 : l == (a.sinks ? a.sinks[h] : -kInf), "%s: lse of row %d head %d: %g not %g", isa_name(level),
            r, h, l, want_lse);
      for (int i = 0; i < c.D; i++) {
        const float got = z.at((static_cast<int64_t>(r) * c.H + h) * c.D + i);
        CHECK(some ? std::fabs(got - want[i]) < tolerance : got == 0, "%s: z of row %d head %d at %d: %g not %g",
              isa_name(level), r, h, i, got, want[i]);
      }
    }
}

template <class T>
static void all(Isa level, Type type, double tolerance) {
  check<T>(level, type, {4, 2, 40, {3, 1, 17}, {33, 5}, 0, 0, false}, tolerance);
  check<T>(level, type, {3, 1, 33, {5, 60, 2}, {70, 31}, 50, 3.f, true}, tolerance);
  check<T>(level, type, {1, 1, 16, {270, 1, 1, 1}, {530, 2}, 0, 0, true}, tolerance);
  check<T>(level, type, {2, 2, 8, {1, 1, 1, 1, 1, 1, 1}, {20}, 7, 0, true}, tolerance);
}

int main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "amx") == 0) {
    all<bf16>(Isa::amx, Type::bf16, 2e-2);
    std::puts("amx");
    return 0;
  }
  for (Isa level : levels()) {
    all<float>(level, Type::f32, 5e-6);
    all<bf16>(level, Type::bf16, 2e-2);
    all<f16>(level, Type::f16, 2e-3);
    std::puts(isa_name(level));
  }
}
