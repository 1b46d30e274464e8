// Binds pycotmech::prefix_attn (pycotmech/ops/prefix_attn.py) to the core's kernel for CPU tensors.
#include "core/prefix_attn.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <tuple>

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

pcm::Type type_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return pcm::Type::f32;
    case ScalarType::BFloat16:
      return pcm::Type::bf16;
    case ScalarType::Half:
      return pcm::Type::f16;
    default:
      STD_TORCH_CHECK(false, "prefix_attn: q must be float32, bfloat16 or float16");
  }
}

pcm::PackedHeads heads(const char* name, const Tensor& x, const Tensor& q, int64_t n_heads) {
  STD_TORCH_CHECK(x.scalar_type() == q.scalar_type() && x.dim() == 3 && x.size(1) == n_heads && x.size(2) == q.size(2),
                  "prefix_attn: ", name, " must be [keys, ", n_heads, ", ", q.size(2), "] in the dtype of q");
  STD_TORCH_CHECK(x.numel() == 0 || x.size(2) == 1 || x.stride(2) == 1, "prefix_attn: ", name,
                  " must be contiguous in its last dim");
  return {x.const_data_ptr(), x.stride(0), x.stride(1)};
}

// A table [n][4] whose memory the kernel may index by without further checks.
Tensor table(const char* name, const Tensor& x) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Int && x.dim() == 2 && x.size(1) == 4, "prefix_attn: ", name,
                  " must be int32 [n, 4]");
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

std::tuple<Tensor, Tensor> prefix_attn(const Tensor& q, const Tensor& k_shared, const Tensor& v_shared,
                                       const Tensor& k_own, const Tensor& v_own, const Tensor& rows, double scale,
                                       int64_t window, double softcap, const std::optional<Tensor>& cuts,
                                       const std::optional<Tensor>& sinks) {
  STD_TORCH_CHECK(q.dim() == 3 && k_own.dim() == 3, "prefix_attn: q and k_own must have three dims");
  pcm::PrefixAttn a;
  a.type = type_of(q);
  a.R = q.size(0), a.H = q.size(1), a.D = q.size(2), a.Hkv = k_own.size(1);
  STD_TORCH_CHECK(a.Hkv > 0 && a.D > 0 && a.H % a.Hkv == 0,
                  "prefix_attn: heads of q must be a multiple of those of k_own");
  a.q = heads("q", q, q, a.H);
  a.k_shared = heads("k_shared", k_shared, q, a.Hkv);
  a.v_shared = heads("v_shared", v_shared, q, a.Hkv);
  a.k_own = heads("k_own", k_own, q, a.Hkv);
  a.v_own = heads("v_own", v_own, q, a.Hkv);
  const int64_t P = k_shared.size(0), N = k_own.size(0);
  STD_TORCH_CHECK(v_shared.size(0) == P && v_own.size(0) == N, "prefix_attn: values must have the shape of their keys");
  const Tensor row_table = table("rows", rows), cut_table = cuts ? table("cuts", *cuts) : row_table;
  STD_TORCH_CHECK(row_table.size(0) == a.R, "prefix_attn: rows must have one entry for each row of q");
  a.rows = row_table.const_data_ptr<int32_t>();
  for (int64_t r = 0; r < a.R; r++) {
    const int32_t* e = a.rows + 4 * r;
    STD_TORCH_CHECK(0 <= e[0] && e[0] <= e[1] && e[1] <= N && 0 <= e[2] && e[2] <= e[3] && e[3] <= P,
                    "prefix_attn: rows[", r, "] is no pair of ranges of k_own and k_shared");
  }
  a.E = cuts ? cut_table.size(0) : 0;
  a.cuts = cuts ? cut_table.const_data_ptr<int32_t>() : nullptr;
  for (int64_t e = 0; e < a.E; e++)
    STD_TORCH_CHECK(0 <= a.cuts[4 * e] && a.cuts[4 * e] < a.R && -1 <= a.cuts[4 * e + 1] && a.cuts[4 * e + 1] < a.H,
                    "prefix_attn: cuts[", e, "] names no row or head of q");
  STD_TORCH_CHECK(window >= 0 && softcap >= 0, "prefix_attn: window and softcap must be 0 or positive");
  a.scale = static_cast<float>(scale), a.window = window, a.softcap = static_cast<float>(softcap);
  if (sinks) {
    STD_TORCH_CHECK(sinks->scalar_type() == ScalarType::Float && sinks->dim() == 1 && sinks->size(0) == a.H &&
                        sinks->is_contiguous(),
                    "prefix_attn: sinks must be contiguous float32 [H]");
    a.sinks = sinks->const_data_ptr<float>();
  }
  Tensor z = torch::stable::new_empty(q, {a.R, a.H, a.D});
  Tensor lse = torch::stable::new_empty(q, {a.R, a.H}, ScalarType::Float);
  a.z = z.mutable_data_ptr();
  a.lse = lse.mutable_data_ptr<float>();
  pcm::prefix_attn(a, [](int64_t n, const std::function<void(int64_t, int64_t)>& body) {
    if (n > 0) torch::stable::parallel_for(0, n, 1, body);
  });
  return {z, lse};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pycotmech, CPU, m) { m.impl("prefix_attn", TORCH_BOX(&prefix_attn)); }
