// CPU kernels of pycotmech::attn_colsum, attn_rows, attn_entries and attn_topk.
#include "core/topk.h"
#include "ops/attn_common.h"

namespace {

using namespace pcm;

const int64_t* indices(const Tensor& x, int64_t below, const char* message) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Long && x.dim() == 1 && x.is_contiguous(), message);
  const int64_t* i = static_cast<const int64_t*>(x.const_data_ptr());
  for (int64_t e = 0; e < x.size(0); e++) STD_TORCH_CHECK(i[e] >= 0 && i[e] < below, message);
  return i;
}

Tensor attn_colsum(const Tensor& q, const Tensor& k, const Tensor& lse, const Maybe& weights, const Maybe& starts,
                   double scale, int64_t window, double softcap) {
  ColsumArgs a;
  fill_attn(a, q, k, starts, scale, window, softcap);
  fill_lse(a, lse);
  if (weights.has_value()) {
    const Tensor& x = *weights;
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float && x.dim() == 3 && (x.size(0) == 1 || x.size(0) == a.B) &&
                        (x.size(1) == 1 || x.size(1) == a.H) && x.size(2) == a.T,
                    "weights must be float32 [B|1, H|1, T]");
    a.weights = static_cast<const float*>(x.const_data_ptr());
    a.weights_batch = shared_stride(x, 0), a.weights_head = shared_stride(x, 1), a.weights_row = x.stride(2);
  }
  Tensor out = new_tensor(q, {a.B, a.H, a.S}, ScalarType::Float);
  a.out = floats(out);
  column_sums(a, workers(), parallel);
  return out;
}

Tensor attn_rows(const Tensor& q, const Tensor& k, const Tensor& lse, const Tensor& rows, const Maybe& starts,
                 double scale, int64_t window, double softcap) {
  RowsArgs a;
  fill_attn(a, q, k, starts, scale, window, softcap);
  fill_lse(a, lse);
  a.rows = indices(rows, a.T, "rows must be contiguous int64 [R], rows of q");
  a.R = rows.size(0);
  Tensor out = new_tensor(q, {a.B, a.H, a.R, a.S}, ScalarType::Float);
  a.out = floats(out);
  pattern_rows(a, workers(), parallel);
  return out;
}

Tensor attn_entries(const Tensor& q, const Tensor& k, const Tensor& lse, const Tensor& qi, const Tensor& ki,
                    const Maybe& starts, double scale, int64_t window, double softcap) {
  EntriesArgs a;
  fill_attn(a, q, k, starts, scale, window, softcap);
  fill_lse(a, lse);
  a.qi = indices(qi, a.T, "qi must be contiguous int64 [E], rows of q");
  a.ki = indices(ki, a.S, "ki must be contiguous int64 [E], keys");
  STD_TORCH_CHECK(qi.size(0) == ki.size(0), "qi and ki must have one length");
  a.E = qi.size(0);
  Tensor out = new_tensor(q, {a.B, a.H, a.E}, ScalarType::Float);
  a.out = floats(out);
  pattern_entries(a, workers(), parallel);
  return out;
}

std::tuple<Tensor, Tensor> attn_topk(const Tensor& q, const Tensor& k, const Tensor& lse, int64_t topk,
                                     const Maybe& starts, double scale, int64_t window, double softcap) {
  TopkArgs a;
  fill_attn(a, q, k, starts, scale, window, softcap);
  fill_lse(a, lse);
  STD_TORCH_CHECK(topk >= 1 && topk <= kMaxTopk, "topk must be 1 to 64");
  a.topk = static_cast<int>(topk);
  Tensor p = new_tensor(q, {a.B, a.H, a.T, topk}, ScalarType::Float);
  Tensor i = new_tensor(q, {a.B, a.H, a.T, topk}, ScalarType::Int);
  a.p = floats(p), a.i = static_cast<int32_t*>(i.mutable_data_ptr());
  top_keys(a, workers(), parallel);
  return {p, i};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pycotmech, CPU, m) {
  m.impl("attn_colsum", TORCH_BOX(&attn_colsum));
  m.impl("attn_rows", TORCH_BOX(&attn_rows));
  m.impl("attn_entries", TORCH_BOX(&attn_entries));
  m.impl("attn_topk", TORCH_BOX(&attn_topk));
}
