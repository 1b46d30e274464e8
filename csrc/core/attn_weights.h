// Second passes over the attention weights, with lse known: column sums, chosen rows and entries, top keys. Torch-free.
#pragma once

#include "core/attn.h"

namespace pcm {

struct WeightsArgs : Attn {
  const float* lse = nullptr;  // [B][H][T] with these strides, in elements
  int64_t lse_batch = 0, lse_head = 0, lse_row = 0;
  float lse_of(int64_t b, int64_t h, int64_t i) const { return lse[b * lse_batch + h * lse_head + i * lse_row]; }
};

struct ColsumArgs : WeightsArgs {
  const float* weights = nullptr;  // one per query row; a stride of 0 where there is one for all
  int64_t weights_batch = 0, weights_head = 0, weights_row = 0;
  float* out = nullptr;  // [B][H][S]
};

struct RowsArgs : WeightsArgs {
  const int64_t* rows = nullptr;  // [R]
  int64_t R = 0;
  float* out = nullptr;  // [B][H][R][S]
};

struct EntriesArgs : WeightsArgs {
  const int64_t *qi = nullptr, *ki = nullptr;  // [E]
  int64_t E = 0;
  float* out = nullptr;  // [B][H][E]
};

struct TopkArgs : WeightsArgs {
  int topk = 1;  // 1 to kMaxTopk
  float* p = nullptr;
  int32_t* i = nullptr;  // [B][H][T][K]
};

void column_sums(const ColsumArgs& args, int workers, const Parallel& parallel);
void pattern_rows(const RowsArgs& args, int workers, const Parallel& parallel);
void pattern_entries(const EntriesArgs& args, int workers, const Parallel& parallel);
void top_keys(const TopkArgs& args, int workers, const Parallel& parallel);

}  // namespace pcm
