// Row steps against double arithmetic, for every instruction set of this machine; buffers of exact size.
#include "core/rows.h"

#include "check.h"

using namespace pcm;

static Random random_;

template <class T>
static void fill(Exact<T>& x, float size) {
  for (int64_t i = 0; i < x.n; i++) from_float(size * random_.uniform(), &x[i]);
}

static bool close(double got, double want, double eps) { return std::fabs(got - want) <= eps * std::fabs(want) + 1e-6; }

template <class T>
static void check(const RowOps& ops, Type type, double eps, int64_t n) {
  Exact<float> x(n), before(n);
  Exact<T> delta(n), weight(n), out(n), gate(n), up(n);
  fill(x, 3), fill(delta, 1), fill(weight, 2), fill(gate, 30), fill(up, 2);
  double squares = 0;
  for (int64_t i = 0; i < n; i++) {
    before[i] = x[i];
    const double y = static_cast<float>(x[i] + delta.at(i));
    squares += y * y;
  }
  const float got = ops.add_squares(x.data(), delta.data(), type, n);
  CHECK(close(got, squares, 1e-6), "%s: squares %g not %g", isa_name(ops.isa), got, squares);
  for (int64_t i = 0; i < n; i++) CHECK(x[i] == before[i] + delta.at(i), "%s: sum at %ld", isa_name(ops.isa), long(i));
  CHECK(close(ops.add_squares(x.data(), nullptr, type, n), squares, 1e-6), "squares without a delta");
  ops.scale_weight(out.data(), x.data(), weight.data(), type, .37f, n);
  for (int64_t i = 0; i < n; i++) {
    const double want = static_cast<double>(x[i]) * .37f * weight.at(i);
    CHECK(close(out.at(i), want, eps), "%s: scaled %g not %g", isa_name(ops.isa), out.at(i), want);
  }
  ops.swiglu(out.data(), gate.data(), up.data(), type, n);
  for (int64_t i = 0; i < n; i++) {
    const double g = gate.at(i), want = g / (1 + std::exp(-g)) * up.at(i);
    CHECK(close(out.at(i), want, eps), "%s: swiglu of %g: %g not %g", isa_name(ops.isa), g, out.at(i), want);
  }
  Exact<T> turned(2 * n);
  Exact<float> cos(2 * n), sin(2 * n), was(2 * n);
  fill(turned, 4), fill(cos, 1), fill(sin, 1);
  for (int64_t i = 0; i < 2 * n; i++) was[i] = turned.at(i);
  ops.rope(turned.data(), type, cos.data(), sin.data(), n);
  for (int64_t i = 0; i < 2 * n; i++) {
    const bool left = i < n;
    const double other = left ? -was[i + n] : was[i - n];
    const double want = static_cast<double>(was[i]) * cos[i] + other * sin[i];
    CHECK(close(turned.at(i), want, eps), "%s: rope at %ld: %g not %g", isa_name(ops.isa), long(i), turned.at(i), want);
  }
}

int main() {
  for (Isa level : levels()) {
    for (int64_t n : {1, 3, 4, 8, 15, 16, 17, 32, 40, 64, 77, 576}) {
      check<float>(row_ops(level), Type::f32, 1e-6, n);
      check<bf16>(row_ops(level), Type::bf16, 4e-3, n);
      check<f16>(row_ops(level), Type::f16, 5e-4, n);
    }
    std::puts(isa_name(level));
  }
}
