// The row steps of rows.h, written once for every vector unit of vec_kernels.inl (included before, in the same place).

template <class V>
PCM_INLINE typename V::R load_as(const float* p) {
  return V::load(p);
}
template <class V>
PCM_INLINE typename V::R load_as(const bf16* p) {
  return V::load_bf16(p);
}
template <class V>
PCM_INLINE typename V::R load_as(const f16* p) {
  return V::load_f16(p);
}
template <class V>
PCM_INLINE void store_as(float* p, typename V::R x) {
  V::store(p, x);
}
template <class V>
PCM_INLINE void store_as(bf16* p, typename V::R x) {
  V::store_bf16(p, x);
}
template <class V>
PCM_INLINE void store_as(f16* p, typename V::R x) {
  V::store_f16(p, x);
}

template <class V, class S>
float add_squares_of(float* x, const S* delta, int64_t n) {
  using R = typename V::R;
  R sum0 = V::set(0.f), sum1 = sum0;
  int64_t i = 0;
  for (; i + 2 * V::kLanes <= n; i += 2 * V::kLanes) {
    R a = V::load(x + i), b = V::load(x + i + V::kLanes);
    if (delta != nullptr) {
      a = V::add(a, load_as<V>(delta + i));
      b = V::add(b, load_as<V>(delta + i + V::kLanes));
      V::store(x + i, a);
      V::store(x + i + V::kLanes, b);
    }
    sum0 = V::madd(a, a, sum0);
    sum1 = V::madd(b, b, sum1);
  }
  float sum = V::sum(V::add(sum0, sum1));
  for (; i < n; i++) {
    if (delta != nullptr) x[i] += to_float(delta[i]);
    sum += x[i] * x[i];
  }
  return sum;
}

template <class V>
float add_squares(float* x, const void* delta, Type type, int64_t n) {
  if (type == Type::bf16) return add_squares_of<V>(x, static_cast<const bf16*>(delta), n);
  if (type == Type::f16) return add_squares_of<V>(x, static_cast<const f16*>(delta), n);
  return add_squares_of<V>(x, static_cast<const float*>(delta), n);
}

template <class V, class S>
void scale_weight_of(S* out, const float* x, const S* weight, float factor, int64_t n) {
  const typename V::R f = V::set(factor);
  int64_t i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes)
    store_as<V>(out + i, V::mul(V::mul(V::load(x + i), f), load_as<V>(weight + i)));
  for (; i < n; i++) from_float(x[i] * factor * to_float(weight[i]), out + i);
}

template <class V>
void scale_weight(void* out, const float* x, const void* w, Type type, float factor, int64_t n) {
  if (type == Type::bf16)
    scale_weight_of<V>(static_cast<bf16*>(out), x, static_cast<const bf16*>(w), factor, n);
  else if (type == Type::f16)
    scale_weight_of<V>(static_cast<f16*>(out), x, static_cast<const f16*>(w), factor, n);
  else
    scale_weight_of<V>(static_cast<float*>(out), x, static_cast<const float*>(w), factor, n);
}

template <class V, class S>
void rope_of(S* x, const float* cos, const float* sin, int64_t half) {
  using R = typename V::R;
  int64_t i = 0;
  for (; i + V::kLanes <= half; i += V::kLanes) {
    const R a = load_as<V>(x + i), b = load_as<V>(x + half + i);
    const R left = V::mul(a, V::load(cos + i)), right = V::mul(b, V::load(cos + half + i));
    store_as<V>(x + i, V::sub(left, V::mul(b, V::load(sin + i))));
    store_as<V>(x + half + i, V::add(right, V::mul(a, V::load(sin + half + i))));
  }
  for (; i < half; i++) {
    const float a = to_float(x[i]), b = to_float(x[half + i]);
    from_float(a * cos[i] - b * sin[i], x + i);
    from_float(b * cos[half + i] + a * sin[half + i], x + half + i);
  }
}

template <class V>
void rope(void* x, Type type, const float* cos, const float* sin, int64_t half) {
  if (type == Type::bf16)
    rope_of<V>(static_cast<bf16*>(x), cos, sin, half);
  else if (type == Type::f16)
    rope_of<V>(static_cast<f16*>(x), cos, sin, half);
  else
    rope_of<V>(static_cast<float*>(x), cos, sin, half);
}

// x / (1 + e^-x), by e^-|x| so that nothing overflows.
template <class V>
PCM_INLINE typename V::R silu_of(typename V::R x) {
  using R = typename V::R;
  const R e = exp_of<V>(V::sub(V::set(0.f), V::abs(x))), one = V::set(1.f);
  return V::div(V::mul(x, V::select_lt(x, V::set(0.f), e, one)), V::add(one, e));
}

template <class V, class S>
void swiglu_of(S* out, const S* gate, const S* up, int64_t n) {
  int64_t i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes)
    store_as<V>(out + i, V::mul(silu_of<V>(load_as<V>(gate + i)), load_as<V>(up + i)));
  for (; i < n; i++) from_float(V::first(silu_of<V>(V::set(to_float(gate[i])))) * to_float(up[i]), out + i);
}

template <class V>
void swiglu(void* out, const void* gate, const void* up, Type type, int64_t n) {
  if (type == Type::bf16)
    swiglu_of<V>(static_cast<bf16*>(out), static_cast<const bf16*>(gate), static_cast<const bf16*>(up), n);
  else if (type == Type::f16)
    swiglu_of<V>(static_cast<f16*>(out), static_cast<const f16*>(gate), static_cast<const f16*>(up), n);
  else
    swiglu_of<V>(static_cast<float*>(out), static_cast<const float*>(gate), static_cast<const float*>(up), n);
}

template <class V>
constexpr RowOps row_table(Isa level) {
  return {level, add_squares<V>, scale_weight<V>, rope<V>, swiglu<V>};
}
