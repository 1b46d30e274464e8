// Row operations against double arithmetic, for every instruction set of this machine.
#include "core/vec.h"

#include <algorithm>

#include "check.h"

using namespace pcm;

static Random random_;

static double ulp(float x) { return std::nextafter(std::fabs(x), kInf) - std::fabs(x); }

static void exponential(const VecOps& v) {
  constexpr int64_t n = 100003;
  Exact<float> x(n), y(n);
  for (int64_t i = 0; i < n; i++) x[i] = -104.f + 190.f * static_cast<float>(i) / n;  // up to e^86
  v.exp_row(y.data(), x.data(), n, 1.f, 0.f);
  double worst = 0;
  for (int64_t i = 0; i < n; i++) {
    const double want = std::exp(static_cast<double>(x[i]));
    if (want > 1.2e-38)
      worst = std::max(worst, std::fabs(y[i] - want) / ulp(static_cast<float>(want)));
    else
      CHECK(std::fabs(y[i] - want) <= 3e-45, "exp(%a) = %g", x[i], y[i]);
  }
  CHECK(worst < 2, "%s: exp is off by %g ulp", isa_name(v.isa), worst);
  float edge[20] = {0.f, -0.f, -kInf, kNan, -200.f, -1e30f, 1e5f, kInf};
  for (int i = 8; i < 20; i++) edge[i] = -1.f;
  v.exp_row(edge, edge, 20, 1.f, 0.f);
  CHECK(edge[0] == 1 && edge[1] == 1 && edge[2] == 0 && std::isnan(edge[3]) && edge[4] == 0 && edge[5] == 0, "edges");
  CHECK(edge[6] == kInf && edge[7] == kInf, "overflow");
  for (int64_t len : {1, 3, 4, 5, 16, 17, 33}) {
    Exact<float> a(len), b(len);
    double sum = 0;
    for (int64_t i = 0; i < len; i++) sum += std::exp(3. * (a[i] = random_.uniform()) - 1.5);
    const float got = v.exp_row(b.data(), a.data(), len, 3.f, 1.5f);
    CHECK(std::fabs(got - sum) < 1e-6 * sum, "sum of %ld: %g not %g", static_cast<long>(len), got, sum);
  }
}

// Two blocks of keys, ranges per row, an entropy; columns out of range and the padding are NaN.
template <class P>
static void softmax(const VecOps& v, void (*step)(const SoftmaxTile&, P*, int64_t), int rows, int cols, float spread) {
  const float scale = 0.37f;
  const int width = static_cast<int>(round_up(cols, 32)), d = 20, blocks = 3;
  const int64_t lds = width + 5, ldp = width + 2, ld_acc = 37;
  std::vector<float> m(rows, kNoScore), l(rows, 0.f), u(rows, 0.f);
  Exact<float> acc((rows - 1) * ld_acc + 32);
  for (int64_t r = 0; r < rows; r++)
    for (int j = 0; j < 32; j++) acc[r * ld_acc + j] = 0;
  std::vector<double> all_s, all_row;
  std::vector<std::vector<double>> seen(rows), weight(rows);
  Exact<float> value(static_cast<int64_t>(blocks) * width);
  for (int64_t i = 0; i < value.n; i++) value[i] = random_.uniform();
  for (int block = 0; block < blocks; block++) {
    Exact<float> s((rows - 1) * lds + width);
    Exact<P> p((rows - 1) * ldp + width);
    std::vector<int> from(rows), to(rows);
    for (int r = 0; r < rows; r++) {
      from[r] = static_cast<int>(random_.next() % (cols + 1)) / 2;
      to[r] = r % 7 == 3 ? 0 : cols - static_cast<int>(random_.next() % (cols + 1)) / 2;
      for (int j = from[r]; j < to[r]; j++) {
        const bool cut = random_.next() % 9 == 0 || r % 11 == 5;
        s[r * lds + j] = cut ? -kInf : spread * random_.uniform() + 100.f;
        if (cut) continue;
        seen[r].push_back(static_cast<double>(scale) * s[r * lds + j]);
        weight[r].push_back(value[block * width + j]);
      }
    }
    SoftmaxTile t;
    t.rows = rows, t.cols = cols, t.s = s.data(), t.lds = lds, t.scale = scale, t.m = m.data(), t.l = l.data();
    t.acc = acc.data(), t.ld_acc = ld_acc, t.acc_cols = d, t.from = from.data(), t.to = to.data(), t.u = u.data();
    step(t, p.data(), ldp);
    for (int r = 0; r < rows; r++)
      for (int j = 0; j < width; j++) {
        const float w = p.at(r * ldp + j);
        CHECK(w == w && w >= 0 && (j >= from[r] && j < to[r] ? true : w == 0), "p[%d][%d] = %g", r, j, w);
        for (int k = 0; k < 32 && w != 0; k++) acc[r * ld_acc + k] += w * value[block * width + j];
      }
  }
  for (int r = 0; r < rows; r++) {
    if (seen[r].empty()) {
      CHECK(l[r] == 0 && u[r] == 0 && acc[r * ld_acc] == 0, "%s: row %d saw nothing", isa_name(v.isa), r);
      continue;
    }
    double top = -1e300, sum = 0, z = 0, entropy = 0;
    for (double x : seen[r]) top = std::max(top, x);
    for (size_t i = 0; i < seen[r].size(); i++) {
      sum += std::exp(seen[r][i] - top);
      z += std::exp(seen[r][i] - top) * weight[r][i];
    }
    for (double x : seen[r]) entropy -= std::exp(x - top) / sum * (x - top - std::log(sum));
    const double tolerance = sizeof(P) == 2 ? 4e-3 : 2e-6;
    CHECK(std::fabs(static_cast<double>(m[r]) * scale + std::log(l[r]) - top - std::log(sum)) < 1e-5,
          "%s: lse of row %d of %d, %d columns, spread %g: %.9g not %.9g", isa_name(v.isa), r, rows, cols, spread,
          m[r] * scale + std::log(l[r]), top + std::log(sum));
    CHECK(std::fabs(acc[r * ld_acc] / l[r] - z / sum) < tolerance, "%s: z of row %d: %g not %g", isa_name(v.isa), r,
          acc[r * ld_acc] / l[r], z / sum);
    CHECK(std::fabs(std::log(static_cast<double>(l[r])) - u[r] / l[r] - entropy) < 2e-6 * (1 + entropy),
          "%s: entropy of row %d: %g not %g", isa_name(v.isa), r, std::log(l[r]) - u[r] / l[r], entropy);
    // acc_cols = 20 is rounded up to 32; the gap between rows is not touched
    if (r + 1 < rows)
      for (int j = 32; j < ld_acc; j++) CHECK(std::isnan(acc[r * ld_acc + j]), "gap of acc written");
  }
}

static void capping(const VecOps& v) {
  constexpr int64_t n = 4001;
  Exact<float> x(n);
  std::vector<float> raw(n);
  for (int64_t i = 0; i < n; i++) raw[i] = x[i] = 400.f * (static_cast<float>(i) / (n - 1) - .5f);
  v.softcap(x.data(), 4001, 1, n, 0.25f, 10.f);
  for (int64_t i = 0; i < n; i++) {
    const double want = 10 * std::tanh(static_cast<double>(raw[i]) * .25 / 10);
    CHECK(std::fabs(x[i] - want) <= 4 * ulp(static_cast<float>(want)) + 1e-45, "%s: cap of %g: %.9g not %.9g",
          isa_name(v.isa), raw[i], x[i], want);
  }
}

template <class T>
static void storage(const VecOps& v, Type type) {
  for (int64_t n : {1, 4, 15, 16, 17, 40}) {
    Exact<T> h(n), back(n);
    Exact<float> wide(n), x(n);
    for (int64_t i = 0; i < n; i++) from_float(x[i] = random_.uniform() * 1000.f, &h[i]);
    if (n > 3) from_float(x[2] = kInf, &h[2]), from_float(x[3] = kNan, &h[3]);
    v.to_f32(wide.data(), h.data(), type, n);
    for (int64_t i = 0; i < n; i++) CHECK(wide[i] == h.at(i) || std::isnan(x[i]), "widened");
    v.from_f32(back.data(), type, x.data(), n, 1.f);
    for (int64_t i = 0; i < n; i++)
      CHECK(back.at(i) == h.at(i) || (std::isnan(x[i]) && std::isnan(back.at(i))), "%s: %g rounded to %g not %g",
            isa_name(v.isa), x[i], back.at(i), h.at(i));
    v.from_f32(back.data(), type, wide.data(), n, .5f);
    for (int64_t i = 0; i < n; i++) CHECK(back.at(i) == .5f * h.at(i) || std::isnan(x[i]), "halved");
  }
}

static void plain(const VecOps& v) {
  for (int64_t n : {0, 1, 7, 8, 16, 31, 32, 64, 67}) {
    Exact<float> x(n), y(n), z(n);
    double want = 0;
    float top = -kInf;
    for (int64_t i = 0; i < n; i++) {
      want += static_cast<double>(x[i] = random_.uniform()) * (z[i] = y[i] = random_.uniform());
      top = std::max(top, x[i]);
    }
    CHECK(std::fabs(v.dot(x.data(), y.data(), n) - want) < 1e-5, "dot");
    CHECK(v.max(x.data(), n) == top, "max");
    v.axpy(y.data(), 2.f, x.data(), n);
    for (int64_t i = 0; i < n; i++) CHECK(std::fabs(y[i] - (z[i] + 2 * x[i])) < 1e-6, "axpy");
    v.scale(x.data(), 3.f, n);
    for (int64_t i = 0; i < n; i++) CHECK(std::fabs(y[i] - (z[i] + x[i] * 2 / 3)) < 1e-6, "scale");
  }
}

int main() {
  for (Isa level : levels()) {
    const VecOps& v = vec_ops(level);
    exponential(v);
    for (int rows : {1, 3, 23})
      for (int cols : {1, 16, 31, 64, 100})
        for (float spread : {1.f, 60.f, 900.f}) {
          softmax<float>(v, v.softmax_f32, rows, cols, spread);
          softmax<bf16>(v, v.softmax_bf16, rows, cols, spread);
        }
    capping(v);
    storage<float>(v, Type::f32);
    storage<bf16>(v, Type::bf16);
    storage<f16>(v, Type::f16);
    plain(v);
    std::puts(isa_name(level));
  }
}
