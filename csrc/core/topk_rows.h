// Finding the largest scores of a row on the host. Torch-free.
#pragma once

#include <algorithm>
#include <limits>

#include "core/cpu.h"
#include "core/topk.h"

namespace pcm {

constexpr int kInlineTopk = 8;

struct TopkOps {
  // A list of up to 8, sorted: score[8] and key[8] (unused slots -inf and -1; with k < 8 the slots after the k-th hold
  // anything). Takes the scores s[from..to), column j being key key0 + j; the keys of a row must come in ascending
  // order, so that a later score that equals an earlier one ranks after it.
  void (*insert)(const float* s, int from, int to, int32_t key0, float* score, int32_t* key, int k);
  // The columns of s[from..to) whose score is above the threshold (a NaN is not), in order; returns how many.
  // `columns` has room for 15 more than there are.
  int (*above)(const float* s, int from, int to, float threshold, int32_t* columns);
};

const TopkOps& topk_ops(Isa level = isa());

// Any K up to 64: list and buffer of topk_slots(k) ranks each.
struct TopkRow {
  uint64_t list[kMaxTopk], buffer[kMaxTopk];
  int k, slots, waiting;
  float threshold;

  void reset(int k_) {
    k = k_;
    slots = topk_slots(k);
    waiting = 0;
    threshold = -std::numeric_limits<float>::infinity();
    std::fill_n(list, slots, uint64_t{0});
  }

  void merge() {
    std::fill(buffer + waiting, buffer + slots, uint64_t{0});
    topk_merge(list, buffer, slots, 0, 1, [] {});
    waiting = 0;
    if (list[k - 1] != 0) threshold = rank_score(list[k - 1]);
  }

  // `columns`: to - from + 15 places to work in.
  void scan(const float* s, int from, int to, int32_t key0, int32_t* columns, const TopkOps& ops) {
    const int n = ops.above(s, from, to, threshold, columns);
    for (int c = 0; c < n; c++) {
      const int j = columns[c];
      if (!(s[j] > threshold)) continue;
      buffer[waiting++] = rank_of(s[j], key0 + j);
      if (waiting == slots) merge();
    }
  }
};

}  // namespace pcm
