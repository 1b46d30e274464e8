// Attention and statistics of its weights in one pass over the keys. Torch-free.
#pragma once

#include "core/attn.h"
#include "core/topk_rows.h"

namespace pcm {

struct ExtractArgs : Attn {
  Heads v;
  const int32_t* segments = nullptr;  // [S] or [B][S], labels; those outside 0..n_segments-1 count as none
  int64_t segments_batch = 0;         // stride in elements, 0: one row for all
  int64_t n_segments = 0;
  const float* readout = nullptr;  // [B|1][H|1][S][C]: a stride of 0 where there is one for all
  int64_t readout_batch = 0, readout_head = 0, readout_key = 0, C = 0;
  int topk = 0;  // 0 to kInlineTopk
  const float* sinks = nullptr;  // [H], logits without a value; null: none
  // Contiguous results, [B][H][T] and a last dim; entropy may be null.
  void* z = nullptr;
  float *lse = nullptr, *pmax = nullptr, *entropy = nullptr, *mass = nullptr, *read = nullptr, *topk_p = nullptr;
  int32_t* topk_i = nullptr;
};

void extract(const ExtractArgs& args, int workers, const Parallel& parallel);

}  // namespace pcm
