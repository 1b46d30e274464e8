// From PyTorch's tensors to the arguments of the attention core, with the checks that keep memory access in bounds.
// Messages for users come from the public Python functions; these guard direct calls of the ops.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>

#include "core/attn_weights.h"

namespace pcm {

using torch::stable::Tensor;
using torch::headeronly::ScalarType;
using Maybe = std::optional<Tensor>;

inline Type attn_type(const Tensor& q) {
  switch (q.scalar_type()) {
    case ScalarType::Float:
      return Type::f32;
    case ScalarType::BFloat16:
      return Type::bf16;
    case ScalarType::Half:
      return Type::f16;
    default:
      STD_TORCH_CHECK(false, "q must be float32, bfloat16 or float16; float64 runs on the reference (pycotmech.ops)");
  }
}

inline Heads heads(const Tensor& x) {
  STD_TORCH_CHECK(x.size(3) <= 1 || x.stride(3) == 1, "attention inputs must be contiguous in their last dim");
  return {x.const_data_ptr(), x.stride(0), x.stride(1), x.stride(2)};
}

// Fills what all attention ops share.
inline void fill_attn(Attn& a, const Tensor& q, const Tensor& k, const Maybe& starts, double scale, int64_t window,
                      double softcap) {
  STD_TORCH_CHECK(q.dim() == 4 && k.dim() == 4, "q and k must be [B, heads, tokens, D]");
  STD_TORCH_CHECK(q.scalar_type() == k.scalar_type(), "q and k must have one dtype");
  a.type = attn_type(q);
  a.B = q.size(0), a.H = q.size(1), a.T = q.size(2), a.D = q.size(3), a.Hkv = k.size(1), a.S = k.size(2);
  STD_TORCH_CHECK(k.size(0) == a.B && k.size(3) == a.D, "k must have the batch and head size of q");
  STD_TORCH_CHECK(a.B > 0 && a.H > 0 && a.T > 0 && a.D > 0 && a.Hkv > 0, "q and k must not be empty");
  STD_TORCH_CHECK(a.H % a.Hkv == 0, "the heads of q must be a multiple of those of k");
  STD_TORCH_CHECK(a.T <= a.S, "the queries are the last T of S keys: T must be at most S");
  STD_TORCH_CHECK(a.S < int64_t{1} << 31 && a.D <= 4096, "S must be below 2^31 and D at most 4096");
  a.q = heads(q), a.k = heads(k);
  if (starts.has_value()) {
    STD_TORCH_CHECK(starts->scalar_type() == ScalarType::Int && starts->dim() == 1 && starts->size(0) == a.B &&
                        starts->is_contiguous(),
                    "starts must be contiguous int32 [B]");
    a.starts = static_cast<const int32_t*>(starts->const_data_ptr());
  }
  STD_TORCH_CHECK(window >= 0 && softcap >= 0, "window and softcap must be 0 (none) or positive");
  a.scale = static_cast<float>(scale), a.window = window, a.softcap = static_cast<float>(softcap);
}

inline void fill_lse(WeightsArgs& a, const Tensor& lse) {
  STD_TORCH_CHECK(lse.scalar_type() == ScalarType::Float && lse.dim() == 3 && lse.size(0) == a.B &&
                      lse.size(1) == a.H && lse.size(2) == a.T,
                  "lse must be float32 [B, H, T]");
  a.lse = static_cast<const float*>(lse.const_data_ptr());
  a.lse_batch = lse.stride(0), a.lse_head = lse.stride(1), a.lse_row = lse.stride(2);
}

// The stride of a dim that may have size 1 for all.
inline int64_t shared_stride(const Tensor& x, int64_t dim) { return x.size(dim) == 1 ? 0 : x.stride(dim); }

inline Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType dtype) {
  return torch::stable::new_empty(like, shape, dtype);
}

inline int workers() { return static_cast<int>(torch::stable::get_num_threads()); }

// One call of `body` on every thread of PyTorch's pool.
inline void parallel(const std::function<void()>& body) {
  torch::stable::parallel_for(0, workers(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) body();
  });
}

inline float* floats(const Tensor& x) { return static_cast<float*>(x.mutable_data_ptr()); }

}  // namespace pcm
