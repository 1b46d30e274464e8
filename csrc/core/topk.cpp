#include "core/topk_rows.h"

#include "core/target.h"

namespace pcm {

extern const TopkOps kTopkAvx512;

namespace {

typedef float Float4 __attribute__((vector_size(16)));
typedef int32_t Int4 __attribute__((vector_size(16)));

// Whether one of 16 scores beats the threshold.
bool any_above(const float* s, float threshold) {
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

template <class Take>
void for_above(const float* s, int from, int to, float threshold, Take take) {
  int j = from;
  for (; j + 16 <= to; j += 16)
    if (any_above(s + j, threshold))
      for (int i = j; i < j + 16; i++)
        if (s[i] > threshold) threshold = take(i);
  for (; j < to; j++)
    if (s[j] > threshold) threshold = take(j);
}

void insert(const float* s, int from, int to, int32_t key0, float* score, int32_t* key, int k) {
  for_above(s, from, to, score[k - 1], [&](int j) {
    const float x = s[j];
    int at = k - 1;
    for (; at > 0 && x > score[at - 1]; at--) score[at] = score[at - 1], key[at] = key[at - 1];
    score[at] = x;
    key[at] = key0 + j;
    return score[k - 1];
  });
}

int above(const float* s, int from, int to, float threshold, int32_t* columns) {
  int n = 0;
  for_above(s, from, to, threshold, [&](int j) {
    columns[n++] = j;
    return threshold;
  });
  return n;
}

const TopkOps kPortable = {insert, above};

}  // namespace

const TopkOps& topk_ops(Isa level) {
#if PCM_X86
  if (level >= Isa::avx512) return kTopkAvx512;
#endif
  (void)level;
  return kPortable;
}

}  // namespace pcm
