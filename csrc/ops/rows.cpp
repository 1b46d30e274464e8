// Binds the row ops of pycotmech/ops (add_rms_norm, rope, swiglu) to the core for CPU tensors.
#include "core/rows.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>
#include <optional>

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrain = 16384;  // elements below which a second thread costs more than it brings

pcm::Type type_of(const char* name, const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return pcm::Type::f32;
    case ScalarType::BFloat16:
      return pcm::Type::bf16;
    case ScalarType::Half:
      return pcm::Type::f16;
    default:
      STD_TORCH_CHECK(false, name, " must be float32, bfloat16 or float16");
  }
}

int64_t bytes_of(pcm::Type type) { return type == pcm::Type::f32 ? 4 : 2; }

void check_rows(const char* name, const Tensor& x, int64_t rows, int64_t d) {
  STD_TORCH_CHECK(x.dim() == 2 && x.size(0) == rows && x.size(1) == d, name, " must be [", rows, ", ", d, "]");
  STD_TORCH_CHECK(x.numel() == 0 || d == 1 || x.stride(1) == 1, name, " must be contiguous in its last dim");
}

template <class Body>
void for_rows(int64_t rows, int64_t elements, const Body& body) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, elements));
  if (rows > 0)
    torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++) body(r);
    });
}

Tensor add_rms_norm(const Tensor& x, const std::optional<Tensor>& delta, const Tensor& weight, double eps) {
  STD_TORCH_CHECK(x.dim() == 2 && x.scalar_type() == ScalarType::Float, "add_rms_norm: x must be float32 [R, d]");
  const int64_t R = x.size(0), d = x.size(1);
  check_rows("x", x, R, d);
  STD_TORCH_CHECK(weight.dim() == 1 && weight.size(0) == d && weight.is_contiguous(), "weight must be [", d, "]");
  const pcm::Type type = type_of("weight", weight);
  pcm::Type delta_type = pcm::Type::f32;
  const char* added = nullptr;
  int64_t delta_row = 0;
  if (delta) {
    check_rows("delta", *delta, R, d);
    delta_type = type_of("delta", *delta);
    added = static_cast<const char*>(delta->const_data_ptr());
    delta_row = delta->stride(0) * bytes_of(delta_type);
  }
  Tensor out = torch::stable::new_empty(weight, {R, d});
  float* rows = x.mutable_data_ptr<float>();
  const void* w = weight.const_data_ptr();
  char* to = static_cast<char*>(out.mutable_data_ptr());
  const int64_t row = x.stride(0), out_row = d * bytes_of(type);
  const pcm::RowOps& ops = pcm::row_ops();
  const float epsilon = static_cast<float>(eps), n = static_cast<float>(d);
  for_rows(R, d, [&](int64_t r) {
    float* xr = rows + r * row;
    const float squares = ops.add_squares(xr, added ? added + r * delta_row : nullptr, delta_type, d);
    ops.scale_weight(to + r * out_row, xr, w, type, 1.f / std::sqrt(squares / n + epsilon), d);
  });
  return out;
}

void rope(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  STD_TORCH_CHECK(x.dim() == 3, "rope: x must be [R, H, D]");
  const int64_t R = x.size(0), H = x.size(1), D = x.size(2);
  STD_TORCH_CHECK(x.numel() == 0 || x.stride(2) == 1, "rope: x must be contiguous in its last dim");
  STD_TORCH_CHECK(cos.dim() == 2 && cos.size(1) <= D && cos.size(1) % 2 == 0, "rope: cos must be [R, D_rot]");
  const int64_t d_rot = cos.size(1);
  for (const Tensor* t : {&cos, &sin}) {
    check_rows("cos and sin", *t, R, d_rot);
    STD_TORCH_CHECK(t->scalar_type() == ScalarType::Float, "rope: cos and sin must be float32");
  }
  const pcm::Type type = type_of("x", x);
  char* data = static_cast<char*>(x.mutable_data_ptr());
  const float *c = cos.const_data_ptr<float>(), *s = sin.const_data_ptr<float>();
  const int64_t row = x.stride(0) * bytes_of(type), head = x.stride(1) * bytes_of(type);
  const int64_t c_row = cos.stride(0), s_row = sin.stride(0);
  const pcm::RowOps& ops = pcm::row_ops();
  for_rows(R, H * d_rot, [&](int64_t r) {
    for (int64_t h = 0; h < H; h++) ops.rope(data + r * row + h * head, type, c + r * c_row, s + r * s_row, d_rot / 2);
  });
}

Tensor swiglu(const Tensor& gate, const Tensor& up) {
  STD_TORCH_CHECK(gate.dim() == 2 && gate.scalar_type() == up.scalar_type(),
                  "swiglu: gate and up must be [R, d], one dtype");
  const int64_t R = gate.size(0), d = gate.size(1);
  check_rows("gate", gate, R, d);
  check_rows("up", up, R, d);
  const pcm::Type type = type_of("gate", gate);
  Tensor out = torch::stable::new_empty(gate, {R, d});
  const int64_t size = bytes_of(type), gate_row = gate.stride(0) * size, up_row = up.stride(0) * size;
  const char *g = static_cast<const char*>(gate.const_data_ptr()), *u = static_cast<const char*>(up.const_data_ptr());
  char* to = static_cast<char*>(out.mutable_data_ptr());
  const pcm::RowOps& ops = pcm::row_ops();
  for_rows(R, d, [&](int64_t r) { ops.swiglu(to + r * d * size, g + r * gate_row, u + r * up_row, type, d); });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pycotmech, CPU, m) {
  m.impl("add_rms_norm", TORCH_BOX(&add_rms_norm));
  m.impl("rope", TORCH_BOX(&rope));
  m.impl("swiglu", TORCH_BOX(&swiglu));
}
