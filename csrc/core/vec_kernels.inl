// Row operations, written once for every vector unit. Included by one file per instruction set, inside an anonymous
// namespace and after PCM_TARGET_BEGIN. Uses nothing from std::.
//
// A unit V has: R (register of kLanes floats), set, load, store, add, sub, mul, div, madd(a, b, c) = a b + c, max
// (where the second operand is NaN: NaN), abs, copysign, round, times_pow2(x, n), select_lt(a, b, x, y) = a < b ? x :
// y, sum, top (largest lane), first (lane 0), load_bf16, store_bf16, load_f16, store_f16.

// 2^t for t <= 127: t = n + f with |f| <= 1/2; the polynomial is the relative minimax of 2^f, to 2e-9 (degree 6), so
// that the error is that of seven rounded operations, or to 8e-8 (degree 5). Below -160 the result is 0 (a NaN passes).
template <class V, bool kShort>
PCM_INLINE typename V::R exp2_of(typename V::R t) {
  using R = typename V::R;
  t = V::max(V::set(-160.f), t);
  const R n = V::round(t), f = V::sub(t, n);
  R y;
  if constexpr (kShort) {
    y = V::madd(V::set(0x1.5c08e6p-10f), f, V::set(0x1.3d0c52p-7f));
    y = V::madd(y, f, V::set(0x1.c6b6e4p-5f));
    y = V::madd(y, f, V::set(0x1.ebf918p-3f));
    y = V::madd(y, f, V::set(0x1.62e428p-1f));
    y = V::madd(y, f, V::set(0x1.000002p+0f));
  } else {
    y = V::madd(V::set(0x1.41d334p-13f), f, V::set(0x1.5f456ap-10f));
    y = V::madd(y, f, V::set(0x1.3b2dbcp-7f));
    y = V::madd(y, f, V::set(0x1.c6aed4p-5f));
    y = V::madd(y, f, V::set(0x1.ebfbdap-3f));
    y = V::madd(y, f, V::set(0x1.62e430p-1f));
    y = V::madd(y, f, V::set(1.f));
  }
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

// Columns of row r that are seen.
PCM_INLINE void seen(const SoftmaxTile& t, int r, int* lo, int* hi) {
  *lo = t.from != nullptr && t.from[r] > 0 ? t.from[r] : 0;
  *hi = t.to != nullptr && t.to[r] < t.cols ? t.to[r] : t.cols;
}

// The new maximum of row r; what is not seen becomes -inf.
template <class V>
PCM_INLINE float new_max(const SoftmaxTile& t, int r, int width) {
  using R = typename V::R;
  const float minus_inf = -__builtin_inff();
  float* s = t.s + r * t.lds;
  int lo, hi;
  seen(t, r, &lo, &hi);
  if (lo >= hi) return t.m[r];
  for (int i = 0; i < lo; i++) s[i] = minus_inf;
  for (int i = hi; i < width; i++) s[i] = minus_inf;
  R a = V::set(t.m[r]), b = a;
  for (int i = 0; i < width; i += 2 * V::kLanes) {
    a = V::max(a, V::load(s + i));
    b = V::max(b, V::load(s + i + V::kLanes));
  }
  return V::top(V::max(a, b));
}

// p = exp((s - m) scale) of row r; sums of p and, for the entropy, of p log2 p.
template <class V, class P, bool kEntropy>
PCM_INLINE void weights_of(const SoftmaxTile& t, int r, int width, float max, P* p, float* sum, float* entropy) {
  using R = typename V::R;
  constexpr bool kShort = sizeof(P) == 2;  // rounded to 8 bits anyway
  const float* s = t.s + r * t.lds;
  int lo, hi;
  seen(t, r, &lo, &hi);
  if (lo >= hi) {
    __builtin_memset(p, 0, width * sizeof(P));
    *sum = *entropy = 0.f;
    return;
  }
  const R m = V::set(max), c = V::set(t.scale * kLog2e);
  R sum0 = V::set(0.f), sum1 = sum0, u0 = sum0, u1 = sum0;
  for (int i = 0; i < width; i += 2 * V::kLanes) {
    // (s - m) first: the rounding of a product of the score itself would grow with the score.
    const R t0 = V::mul(V::sub(V::load(s + i), m), c), t1 = V::mul(V::sub(V::load(s + i + V::kLanes), m), c);
    const R p0 = exp2_of<V, kShort>(t0), p1 = exp2_of<V, kShort>(t1);
    sum0 = V::add(sum0, p0);
    sum1 = V::add(sum1, p1);
    if constexpr (kEntropy) {
      u0 = V::madd(p0, V::max(V::set(-160.f), t0), u0);
      u1 = V::madd(p1, V::max(V::set(-160.f), t1), u1);
    }
    store_p<V>(p + i, p0);
    store_p<V>(p + i + V::kLanes, p1);
  }
  *sum = V::sum(V::add(sum0, sum1));
  *entropy = kEntropy ? V::sum(V::add(u0, u1)) * 0x1.62e430p-1f : 0.f;
}

// Rows go by sixteens: first all maxima, then their factors in one register, then the weights. One row at a time would
// wait for each factor.
template <class V, class P, bool kEntropy>
void softmax_rows(const SoftmaxTile& t, P* p, int64_t ldp) {
  using R = typename V::R;
  constexpr int kRows = 16;
  const int width = (t.cols + 31) / 32 * 32;
  for (int r0 = 0; r0 < t.rows; r0 += kRows) {
    const int n = t.rows - r0 < kRows ? t.rows - r0 : kRows;
    float now[kRows] = {}, shift[kRows] = {}, f[kRows], sum[kRows], u[kRows];
    for (int i = 0; i < n; i++) {
      now[i] = new_max<V>(t, r0 + i, width);
      shift[i] = (t.m[r0 + i] - now[i]) * t.scale;
    }
    for (int i = 0; i < kRows; i += V::kLanes) V::store(f + i, exp_of<V>(V::load(shift + i)));
    for (int i = 0; i < n; i++)
      weights_of<V, P, kEntropy>(t, r0 + i, width, now[i], p + (r0 + i) * ldp, sum + i, u + i);
    for (int i = 0; i < n; i++) {
      const int r = r0 + i;
      if constexpr (kEntropy) t.u[r] = f[i] * (t.u[r] + t.l[r] * shift[i]) + u[i];
      t.l[r] = f[i] * t.l[r] + sum[i];
      t.m[r] = now[i];
      if (t.acc == nullptr || f[i] == 1.f) continue;
      const R factor = V::set(f[i]);
      float* a = t.acc + r * t.ld_acc;
      for (int j = 0; j < t.acc_cols; j += 16)
        for (int v = 0; v < 16; v += V::kLanes) V::store(a + j + v, V::mul(factor, V::load(a + j + v)));
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
