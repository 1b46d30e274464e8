// CPU kernel of pycotmech::attn_extract.
#include "core/extract.h"
#include "ops/attn_common.h"

namespace {

using namespace pcm;

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> attn_extract(
    const Tensor& q, const Tensor& k, const Tensor& v, const Maybe& segments, int64_t n_segments, const Maybe& readout,
    const Maybe& starts, double scale, bool entropy, int64_t topk, int64_t window, double softcap, const Maybe& sinks) {
  ExtractArgs a;
  fill_attn(a, q, k, starts, scale, window, softcap);
  STD_TORCH_CHECK(v.scalar_type() == q.scalar_type() && v.dim() == 4 && v.size(0) == a.B && v.size(1) == a.Hkv &&
                      v.size(2) == a.S && v.size(3) == a.D,
                  "v must have the dtype and shape of k");
  a.v = heads(v);
  if (segments.has_value()) {
    const Tensor& x = *segments;
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Int && (x.dim() == 1 || (x.dim() == 2 && x.size(0) == a.B)) &&
                        x.size(x.dim() - 1) == a.S && x.is_contiguous(),
                    "segments must be contiguous int32 [S] or [B, S]");
    STD_TORCH_CHECK(n_segments > 0, "n_segments must be positive where there are segments");
    a.segments = static_cast<const int32_t*>(x.const_data_ptr());
    a.segments_batch = x.dim() == 2 && a.B > 1 ? a.S : 0;
    a.n_segments = n_segments;
  }
  if (readout.has_value()) {
    const Tensor& x = *readout;
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float && x.dim() == 4 && (x.size(0) == 1 || x.size(0) == a.B) &&
                        (x.size(1) == 1 || x.size(1) == a.H) && x.size(2) == a.S && x.size(3) > 0 &&
                        (x.size(3) == 1 || x.stride(3) == 1),
                    "readout must be float32 [B|1, H|1, S, C], contiguous in its last dim");
    a.readout = static_cast<const float*>(x.const_data_ptr());
    a.readout_batch = shared_stride(x, 0), a.readout_head = shared_stride(x, 1);
    a.readout_key = x.stride(2), a.C = x.size(3);
  }
  STD_TORCH_CHECK(topk >= 0 && topk <= kInlineTopk, "topk must be 0 to 8; attn_topk finds more");
  a.topk = static_cast<int>(topk);
  if (sinks.has_value()) {
    STD_TORCH_CHECK(sinks->scalar_type() == ScalarType::Float && sinks->dim() == 1 && sinks->size(0) == a.H &&
                        sinks->is_contiguous(),
                    "sinks must be contiguous float32 [H]");
    a.sinks = static_cast<const float*>(sinks->const_data_ptr());
  }

  const auto wide = [&](std::initializer_list<int64_t> shape) { return new_tensor(q, shape, ScalarType::Float); };
  Tensor z = new_tensor(q, {a.B, a.H, a.T, a.D}, q.scalar_type());
  Tensor lse = wide({a.B, a.H, a.T}), pmax = wide({a.B, a.H, a.T});
  Tensor h = entropy ? wide({a.B, a.H, a.T}) : wide({0});
  Tensor mass = wide({a.B, a.H, a.T, a.n_segments}), read = wide({a.B, a.H, a.T, a.C});
  Tensor topk_p = wide({a.B, a.H, a.T, topk}), topk_i = new_tensor(q, {a.B, a.H, a.T, topk}, ScalarType::Int);
  a.z = z.mutable_data_ptr();
  a.lse = floats(lse), a.pmax = floats(pmax), a.entropy = entropy ? floats(h) : nullptr;
  a.mass = floats(mass), a.read = floats(read), a.topk_p = floats(topk_p);
  a.topk_i = static_cast<int32_t*>(topk_i.mutable_data_ptr());
  extract(a, workers(), parallel);
  return {z, lse, pmax, h, mass, read, topk_p, topk_i};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pycotmech, CPU, m) { m.impl("attn_extract", TORCH_BOX(&attn_extract)); }
