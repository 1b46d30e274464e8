// The K largest scores of a stream of (score, key) pairs, ties to the lowest key, written once for host and device.
//
// A row keeps a sorted list and a buffer of the same size. Scores that beat the K-th best are put into the buffer; when
// it is full it is sorted by a bitonic network and merged into the list. The lanes that share a row (one on the host, a
// warp on the device) each take their part of every step of the network, with a barrier in between: the order of the
// steps, and so the result, does not depend on their number.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define PCM_HD __host__ __device__ __forceinline__
#else
#define PCM_HD static inline
#endif

namespace pcm {

constexpr int kMaxTopk = 64;

// The size of list and buffer: the power of two that holds K.
PCM_HD int topk_slots(int k) { return k <= 8 ? 8 : k <= 16 ? 16 : k <= 32 ? 32 : 64; }

// Score and key as one integer, the larger the earlier in the ranking. 0 is an empty slot: it ranks after every finite
// score and -inf, and its key reads -1.
PCM_HD uint64_t rank_of(float score, int32_t key) {
  score += 0.f;  // -0 equals 0
  uint32_t u;
#if defined(__CUDA_ARCH__)
  u = __float_as_uint(score);
#else
  __builtin_memcpy(&u, &score, 4);
#endif
  u ^= u >> 31 != 0 ? 0xffffffffu : 0x80000000u;
  return static_cast<uint64_t>(u) << 32 | static_cast<uint32_t>(~key);
}

PCM_HD int32_t rank_key(uint64_t rank) { return static_cast<int32_t>(~static_cast<uint32_t>(rank)); }

PCM_HD float rank_score(uint64_t rank) {
  uint32_t u = static_cast<uint32_t>(rank >> 32);
  u ^= u >> 31 != 0 ? 0x80000000u : 0xffffffffu;
  float score;
#if defined(__CUDA_ARCH__)
  score = __uint_as_float(u);
#else
  __builtin_memcpy(&score, &u, 4);
#endif
  return score;
}

// Step (size, stride) of a bitonic network: this lane's pairs of n slots are put in order, descending where the block
// of `size` slots they lie in is even, ascending where it is odd.
PCM_HD void bitonic_step(uint64_t* slots, int n, int size, int stride, int lane, int lanes) {
  for (int i = lane; i < n / 2; i += lanes) {
    const int low = 2 * i - (i & (stride - 1)), high = low + stride;
    const uint64_t a = slots[low], b = slots[high];
    const uint64_t more = a > b ? a : b, less = a > b ? b : a;
    const bool descending = (low & size) == 0;
    slots[low] = descending ? more : less;
    slots[high] = descending ? less : more;
  }
}

// list (n slots, descending) becomes the n largest of list and buffer (any order, destroyed). `sync` is a barrier
// between the lanes; the callers' writes to the buffer must be visible before.
template <class Sync>
PCM_HD void topk_merge(uint64_t* list, uint64_t* buffer, int n, int lane, int lanes, Sync sync) {
  for (int size = 2; size < n; size *= 2)
    for (int stride = size / 2; stride > 0; stride /= 2) {
      bitonic_step(buffer, n, size, stride, lane, lanes);
      sync();
    }
  // The last stage leaves the buffer descending; read backwards it forms a bitonic sequence with the list.
  for (int stride = n / 2; stride > 0; stride /= 2) {
    bitonic_step(buffer, n, n, stride, lane, lanes);
    sync();
  }
  for (int i = lane; i < n; i += lanes)
    if (buffer[n - 1 - i] > list[i]) list[i] = buffer[n - 1 - i];
  sync();
  for (int stride = n / 2; stride > 0; stride /= 2) {
    bitonic_step(list, n, n, stride, lane, lanes);
    sync();
  }
}

}  // namespace pcm
