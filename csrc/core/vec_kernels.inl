// Row operations, written once for every vector unit. Included by one file per instruction set, inside an anonymous
// namespace and after PCM_TARGET_BEGIN. Uses nothing from std::.
//
// A unit V has: R (register of kLanes floats), set, load, store, add, sub, mul, div, madd(a, b, c) = a b + c, max
// (where the second operand is NaN: NaN), abs, copysign, round, times_pow2(x, n), select_lt(a, b, x, y) = a < b ? x :
// y, sum, top (largest lane), first (lane 0), load_bf16, store_bf16, load_f16, store_f16.

// 2^t for t <= 127: t = n + f with |f| <= 1/2; the polynomial is the relative minimax of 2^f (2e-9), so the error is
// that of seven rounded operations. Below -160 the result is 0 (a NaN passes).
template <class V>
PCM_INLINE typename V::R exp2_of(typename V::R t) {
  using R = typename V::R;
  t = V::max(V::set(-160.f), t);
  const R n = V::round(t), f = V::sub(t, n);
  R y = V::set(0x1.41d334p-13f);
  y = V::madd(y, f, V::set(0x1.5f456ap-10f));
  y = V::madd(y, f, V::set(0x1.3b2dbcp-7f));
  y = V::madd(y, f, V::set(0x1.c6aed4p-5f));
  y = V::madd(y, f, V::set(0x1.ebfbdap-3f));
  y = V::madd(y, f, V::set(0x1.62e430p-1f));
  y = V::madd(y, f, V::set(1.f));
  return V::times_pow2(y, n);
}

constexpr float kLog2e = 0x1.715476p+0f;

// e^x with x split by the two parts of ln 2, since log2(e) x alone would carry the rounding of the product into the
// result.
template <class V>
PCM_INLINE typename V::R exp_of(typename V::R x) {
  using R = typename V::R;
  x = V::max(V::set(-111.f), V::select_lt(V::set(89.f), x, V::set(89.f), x));  // e^89 is infinite
  const R n = V::round(V::mul(x, V::set(kLog2e)));
  R f = V::madd(n, V::set(-0x1.62e400p-1f), x);
  f = V::madd(n, V::set(-0x1.7f7d1cp-20f), f);
  R y = V::set(0x1.6a1a8ep-10f);
  y = V::madd(y, f, V::set(0x1.123fb4p-7f));
  y = V::madd(y, f, V::set(0x1.555916p-5f));
  y = V::madd(y, f, V::set(0x1.55548ap-3f));
  y = V::madd(y, f, V::set(0x1.fffffcp-2f));
  y = V::madd(y, f, V::set(1.f));
  y = V::madd(y, f, V::set(1.f));
  return V::times_pow2(y, n);
}

template <class V>
PCM_INLINE float exp_one(float x) {
  return V::first(exp_of<V>(V::set(x)));
}

// tanh: an odd polynomial near 0, where 1 - 2 / (e^2x + 1) would cancel.
template <class V>
PCM_INLINE typename V::R tanh_of(typename V::R x) {
  using R = typename V::R;
  const R a = V::abs(x), y = V::mul(a, a);
  R p = V::set(0.0024416987f);
  p = V::madd(p, y, V::set(-0.008456234f));
  p = V::madd(p, y, V::set(0.021797448f));
  p = V::madd(p, y, V::set(-0.053961977f));
  p = V::madd(p, y, V::set(0.1333331f));
  p = V::madd(p, y, V::set(-0.33333334f));
  const R near = V::madd(V::mul(p, y), a, a);
  // e^-2a never overflows: tanh a = 1 - 2 e^-2a / (1 + e^-2a).
  const R e = exp_of<V>(V::mul(a, V::set(-2.f)));
  const R far = V::sub(V::set(1.f), V::div(V::add(e, e), V::add(V::set(1.f), e)));
  return V::copysign(V::select_lt(a, V::set(0.55f), near, far), x);
}

template <class V>
PCM_INLINE void store_p(float* p, typename V::R x) {
  V::store(p, x);
}
template <class V>
PCM_INLINE void store_p(bf16* p, typename V::R x) {
  V::store_bf16(p, x);
}

template <class V, class P, bool kEntropy>
void softmax_rows(const SoftmaxTile& t, P* p, int64_t ldp) {
  using R = typename V::R;
  const int width = (t.cols + 31) / 32 * 32;
  const float minus_inf = -__builtin_inff();
  const R c = V::set(t.scale * kLog2e);
  for (int r = 0; r < t.rows; r++) {
    float* s = t.s + r * t.lds;
    P* out = p + r * ldp;
    const int lo = t.from ? t.from[r] : 0, hi = t.to && t.to[r] < t.cols ? t.to[r] : t.cols;
    if (lo >= hi) {
      __builtin_memset(out, 0, width * sizeof(P));
      continue;
    }
    for (int i = 0; i < lo; i++) s[i] = minus_inf;
    for (int i = hi; i < width; i++) s[i] = minus_inf;
    const float old = t.m[r];
    R top0 = V::set(old), top1 = top0;
    for (int i = 0; i < width; i += 2 * V::kLanes) {
      top0 = V::max(top0, V::load(s + i));
      top1 = V::max(top1, V::load(s + i + V::kLanes));
    }
    const float now = V::top(V::max(top0, top1));
    const R m = V::set(now);
    R sum0 = V::set(0.f), sum1 = sum0, u0 = sum0, u1 = sum0;
    for (int i = 0; i < width; i += 2 * V::kLanes) {
      // (s - m) first: the rounding of a product of the score itself would grow with the score.
      R t0 = V::mul(V::sub(V::load(s + i), m), c), t1 = V::mul(V::sub(V::load(s + i + V::kLanes), m), c);
      const R p0 = exp2_of<V>(t0), p1 = exp2_of<V>(t1);
      sum0 = V::add(sum0, p0);
      sum1 = V::add(sum1, p1);
      if constexpr (kEntropy) {
        u0 = V::madd(p0, V::max(V::set(-160.f), t0), u0);
        u1 = V::madd(p1, V::max(V::set(-160.f), t1), u1);
      }
      store_p<V>(out + i, p0);
      store_p<V>(out + i + V::kLanes, p1);
    }
    const float sum = V::sum(V::add(sum0, sum1));
    if (now == old) {  // also: nothing seen yet and nothing now
      t.l[r] += sum;
      if constexpr (kEntropy) t.u[r] += V::sum(V::add(u0, u1)) * 0x1.62e430p-1f;
      continue;
    }
    const float shift = (old - now) * t.scale, f = exp_one<V>(shift);
    // Nothing seen before: l = 0, and the shift is as large as kNoScore.
    if constexpr (kEntropy)
      t.u[r] = (t.l[r] > 0 ? f * (t.u[r] + t.l[r] * shift) : 0.f) + V::sum(V::add(u0, u1)) * 0x1.62e430p-1f;
    t.l[r] = f * t.l[r] + sum;
    t.m[r] = now;
    if (t.acc != nullptr) {
      const R factor = V::set(f);
      float* a = t.acc + r * t.ld_acc;
      for (int i = 0; i < t.acc_cols; i += 16)
        for (int v = 0; v < 16; v += V::kLanes) V::store(a + i + v, V::mul(factor, V::load(a + i + v)));
    }
  }
}

template <class V, class P>
void softmax(const SoftmaxTile& t, P* p, int64_t ldp) {
  t.u != nullptr ? softmax_rows<V, P, true>(t, p, ldp) : softmax_rows<V, P, false>(t, p, ldp);
}

template <class V>
float exp_row(float* y, const float* x, int64_t n, float scale, float shift) {
  using R = typename V::R;
  const R a = V::set(scale), b = V::set(-shift);
  R sum = V::set(0.f);
  int64_t i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes) {
    const R e = exp_of<V>(V::madd(V::load(x + i), a, b));
    V::store(y + i, e);
    sum = V::add(sum, e);
  }
  float total = V::sum(sum);
  for (; i < n; i++) total += y[i] = exp_one<V>(V::first(V::madd(V::set(x[i]), a, b)));
  return total;
}

template <class V>
void softcap(float* x, int64_t ld, int64_t rows, int64_t cols, float scale, float cap) {
  using R = typename V::R;
  const R a = V::set(scale), c = V::set(cap);
  for (int64_t r = 0; r < rows; r++, x += ld) {
    int64_t i = 0;
    for (; i + V::kLanes <= cols; i += V::kLanes)
      V::store(x + i, V::mul(c, tanh_of<V>(V::div(V::mul(V::load(x + i), a), c))));
    for (; i < cols; i++) x[i] = V::first(V::mul(c, tanh_of<V>(V::div(V::mul(V::set(x[i]), a), c))));
  }
}

template <class V>
void to_f32(float* out, const void* x, Type type, int64_t n) {
  int64_t i = 0;
  if (type == Type::f32) {
    __builtin_memcpy(out, x, n * sizeof(float));
  } else if (type == Type::bf16) {
    const bf16* h = static_cast<const bf16*>(x);
    for (; i + V::kLanes <= n; i += V::kLanes) V::store(out + i, V::load_bf16(h + i));
    for (; i < n; i++) out[i] = to_float(h[i]);
  } else {
    const f16* h = static_cast<const f16*>(x);
    for (; i + V::kLanes <= n; i += V::kLanes) V::store(out + i, V::load_f16(h + i));
    for (; i < n; i++) out[i] = to_float(h[i]);
  }
}

template <class V>
void from_f32(void* out, Type type, const float* x, int64_t n, float factor) {
  const typename V::R a = V::set(factor);
  int64_t i = 0;
  if (type == Type::f32) {
    float* y = static_cast<float*>(out);
    for (; i + V::kLanes <= n; i += V::kLanes) V::store(y + i, V::mul(a, V::load(x + i)));
    for (; i < n; i++) y[i] = factor * x[i];
  } else if (type == Type::bf16) {
    bf16* y = static_cast<bf16*>(out);
    for (; i + V::kLanes <= n; i += V::kLanes) V::store_bf16(y + i, V::mul(a, V::load(x + i)));
    for (; i < n; i++) from_float(factor * x[i], y + i);
  } else {
    f16* y = static_cast<f16*>(out);
    for (; i + V::kLanes <= n; i += V::kLanes) V::store_f16(y + i, V::mul(a, V::load(x + i)));
    for (; i < n; i++) from_float(factor * x[i], y + i);
  }
}

template <class V>
float row_max(const float* x, int64_t n) {
  float top = -__builtin_inff();
  int64_t i = 0;
  if (n >= V::kLanes) {
    typename V::R y = V::load(x);
    for (i = V::kLanes; i + V::kLanes <= n; i += V::kLanes) y = V::max(y, V::load(x + i));
    top = V::top(y);
  }
  for (; i < n; i++) top = x[i] > top ? x[i] : top;
  return top;
}

template <class V>
float dot(const float* x, const float* y, int64_t n) {
  typename V::R a = V::set(0.f), b = a;
  int64_t i = 0;
  for (; i + 2 * V::kLanes <= n; i += 2 * V::kLanes) {
    a = V::madd(V::load(x + i), V::load(y + i), a);
    b = V::madd(V::load(x + i + V::kLanes), V::load(y + i + V::kLanes), b);
  }
  float sum = V::sum(V::add(a, b));
  for (; i < n; i++) sum += x[i] * y[i];
  return sum;
}

template <class V>
void axpy(float* y, float a, const float* x, int64_t n) {
  const typename V::R f = V::set(a);
  int64_t i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes) V::store(y + i, V::madd(f, V::load(x + i), V::load(y + i)));
  for (; i < n; i++) y[i] += a * x[i];
}

template <class V>
void scale(float* y, float a, int64_t n) {
  const typename V::R f = V::set(a);
  int64_t i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes) V::store(y + i, V::mul(f, V::load(y + i)));
  for (; i < n; i++) y[i] *= a;
}

template <class V>
constexpr VecOps table(Isa level) {
  return {level,       softmax<V, float>, softmax<V, bf16>, exp_row<V>, softcap<V>, to_f32<V>,
          from_f32<V>, row_max<V>,        dot<V>,           axpy<V>,    scale<V>};
}
