// Scanning a row of scores for the largest, on the host.
#pragma once

#include <algorithm>
#include <limits>

#include "core/topk.h"

namespace pcm {

// Whether one of 16 scores beats the threshold (a NaN does not).
inline bool any_above(const float* s, float threshold) {
  typedef float Float4 __attribute__((vector_size(16)));
  typedef int32_t Int4 __attribute__((vector_size(16)));
  const Float4 t = {threshold, threshold, threshold, threshold};
  Float4 a, b, c, d;
  __builtin_memcpy(&a, s, 16);
  __builtin_memcpy(&b, s + 4, 16);
  __builtin_memcpy(&c, s + 8, 16);
  __builtin_memcpy(&d, s + 12, 16);
  const Int4 any = (a > t) | (b > t) | (c > t) | (d > t);
  uint64_t halves[2];
  __builtin_memcpy(halves, &any, 16);
  return (halves[0] | halves[1]) != 0;
}

// Calls take(column) for each score of s[from..to) above the threshold that `take` returns after every call, in order.
template <class Take>
void scan_above(const float* s, int from, int to, float threshold, Take take) {
  int j = from;
  for (; j + 16 <= to; j += 16)
    if (any_above(s + j, threshold))
      for (int i = j; i < j + 16; i++)
        if (s[i] > threshold) threshold = take(i);
  for (; j < to; j++)
    if (s[j] > threshold) threshold = take(j);
}

// Up to 8: a sorted list by insertion. The keys of a row must come in ascending order, so that a later score that equals
// an earlier one ranks behind it. Column j is key key0 + j. Unused slots hold -inf and -1.
inline void topk_scan(const float* s, int from, int to, int32_t key0, float* top_s, int32_t* top_i, int k) {
  scan_above(s, from, to, top_s[k - 1], [&](int j) {
    const float x = s[j];
    int at = k - 1;
    for (; at > 0 && x > top_s[at - 1]; at--) top_s[at] = top_s[at - 1], top_i[at] = top_i[at - 1];
    top_s[at] = x;
    top_i[at] = key0 + j;
    return top_s[k - 1];
  });
}

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

  float merge() {
    std::fill(buffer + waiting, buffer + slots, uint64_t{0});
    topk_merge(list, buffer, slots, 0, 1, [] {});
    waiting = 0;
    if (list[k - 1] != 0) threshold = rank_score(list[k - 1]);
    return threshold;
  }

  void scan(const float* s, int from, int to, int32_t key0) {
    scan_above(s, from, to, threshold, [&](int j) {
      buffer[waiting++] = rank_of(s[j], key0 + j);
      return waiting == slots ? merge() : threshold;
    });
  }
};

}  // namespace pcm
