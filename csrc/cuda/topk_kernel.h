// The K heaviest keys of every query row: the kernel around core/topk.h. Included by topk.cu, and by a test that runs
// it on the host with the threads of a block one after another between barriers.
//
// A block holds 32 query rows of one head, 8 to a warp; a tile of 32 keys is shared by all of them, one key to a lane.
// Scores are exact float32 products (no tensor cores: the ranking is that of float32). Hits go into the row's buffer in
// shared memory; the sorting network of core/topk.h merges it into the row's list, a warp to a row.
#pragma once

#include <cstdint>

#include "core/topk.h"

#if defined(__CUDACC__)
#define PCM_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace pcm {

constexpr int kWarps = 4, kRowsPerWarp = 8, kRows = kWarps * kRowsPerWarp, kThreads = kWarps * 32;
constexpr int kKeys = 32;
constexpr int kStep = 64;           // dims of the keys that are in shared memory at a time
constexpr int kStride = kStep + 4;  // 16-byte reads of neighbouring lanes fall into different banks
constexpr int kSlots = kMaxTopk;    // of list and buffer; a tile adds up to 32 hits

struct TopkLaunch {
  const void *q, *k;
  const float* lse;
  const int32_t* starts;
  float* p;
  int32_t* i;
  int64_t q_batch, q_head, q_row, k_batch, k_head, k_row, lse_batch, lse_head, lse_row;
  int32_t H, group, T, S, D, topk, window;
  float sign, scale, unit, softcap;
};

struct TopkSlots {
  uint64_t list[kSlots], buffer[kSlots];
};

__device__ __forceinline__ void merge_buffer(TopkSlots& row, int waiting, int lane) {
  for (int i = waiting + lane; i < kSlots; i += 32) row.buffer[i] = 0;
  __syncwarp();
  topk_merge(row.list, row.buffer, kSlots, lane, 32, [] { __syncwarp(); });
}

template <class T>
__global__ void __launch_bounds__(kThreads, 4) topk_kernel(const TopkLaunch a) {
  PCM_SHARED(memory);
  const int d_padded = (a.D + kStep - 1) / kStep * kStep;
  TopkSlots* rows = reinterpret_cast<TopkSlots*>(memory);
  float* queries = reinterpret_cast<float*>(rows + kRows);  // [kRows][d_padded]
  float* keys = queries + kRows * d_padded;                 // [kKeys][kStride]
  float* thresholds = keys + kKeys * kStride;               // [kRows]
  int* waiting = reinterpret_cast<int*>(thresholds + kRows);

  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int h = blockIdx.y, b = blockIdx.z;
  const int r0 = (gridDim.x - 1 - blockIdx.x) * kRows;  // the heaviest rows first
  const T* q = static_cast<const T*>(a.q) + b * a.q_batch + h * a.q_head;
  const T* k = static_cast<const T*>(a.k) + b * a.k_batch + h / a.group * a.k_head;

  for (int e = thread; e < kRows * d_padded; e += kThreads) {
    const int r = e / d_padded, d = e % d_padded;
    queries[e] = r0 + r < a.T && d < a.D ? a.sign * widen(q[(r0 + r) * a.q_row + d]) : 0.f;
  }
  for (int e = thread; e < kRows * kSlots; e += kThreads) rows[e / kSlots].list[e % kSlots] = 0;
  for (int r = thread; r < kRows; r += kThreads) thresholds[r] = -INFINITY, waiting[r] = 0;

  // Query row i is at key i + S - T and sees the keys [first(i), i + S - T].
  const int shift = a.S - a.T, start = a.starts != nullptr ? max(a.starts[b], 0) : 0;
  const auto first = [&](int i) { return a.window > 0 ? max(start, i + shift + 1 - a.window) : start; };
  const int last = min(r0 + kRows, a.T) - 1, end = last + shift + 1;
  const float* own = queries + warp * kRowsPerWarp * d_padded;

  for (int n0 = first(r0) / kKeys * kKeys; n0 < end; n0 += kKeys) {
    float score[kRowsPerWarp] = {};
    for (int d0 = 0; d0 < d_padded; d0 += kStep) {
      __syncthreads();  // all are done with the keys of the step before (and, at first, with the queries)
      for (int e = thread; e < kKeys * kStep; e += kThreads) {
        const int j = e / kStep, d = e % kStep;
        keys[j * kStride + d] = n0 + j < end && d0 + d < a.D ? widen(k[(n0 + j) * a.k_row + d0 + d]) : 0.f;
      }
      __syncthreads();
#pragma unroll 4
      for (int d = 0; d < kStep; d += 4) {
        const float4 y = *reinterpret_cast<const float4*>(keys + lane * kStride + d);
#pragma unroll
        for (int r = 0; r < kRowsPerWarp; r++) {
          const float4 x = *reinterpret_cast<const float4*>(own + r * d_padded + d0 + d);
          score[r] = fmaf(x.x, y.x, fmaf(x.y, y.y, fmaf(x.z, y.z, fmaf(x.w, y.w, score[r]))));
        }
      }
    }
    const int j = n0 + lane;
    unsigned full = 0;  // rows of this warp whose buffer has no room for another tile
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; r++) {
      const int row = warp * kRowsPerWarp + r, i = r0 + row;
      const float s = a.softcap > 0 ? a.softcap * tanhf(score[r] * a.scale / a.softcap) : score[r];
      const bool hit = i < a.T && j >= first(i) && j <= i + shift && s > thresholds[row];
      const unsigned hits = __ballot_sync(0xffffffffu, hit);
      if (hits == 0) continue;
      const int before = waiting[row], after = before + __popc(hits);
      if (hit) rows[row].buffer[before + __popc(hits & ((1u << lane) - 1))] = rank_of(s, j);
      __syncwarp();
      if (lane == 0) waiting[row] = after;
      if (after > kSlots - kKeys) full |= 1u << r;
    }
    __syncwarp();
    for (; full != 0; full &= full - 1) {
      const int row = warp * kRowsPerWarp + __ffs(full) - 1;
      merge_buffer(rows[row], waiting[row], lane);
      if (lane == 0) {
        const uint64_t least = rows[row].list[a.topk - 1];
        waiting[row] = 0;
        if (least != 0) thresholds[row] = rank_score(least);
      }
      __syncwarp();
    }
  }

  __syncthreads();
  for (int r = 0; r < kRowsPerWarp; r++) {
    const int row = warp * kRowsPerWarp + r, i = r0 + row;
    if (i >= a.T) break;
    merge_buffer(rows[row], waiting[row], lane);
    const float lse = a.lse[b * a.lse_batch + h * a.lse_head + i * a.lse_row];
    const int64_t out = ((static_cast<int64_t>(b) * a.H + h) * a.T + i) * a.topk;
    for (int slot = lane; slot < a.topk; slot += 32) {
      const uint64_t rank = rows[row].list[slot];
      a.p[out + slot] = rank == 0 ? 0.f : expf(rank_score(rank) * a.unit - lse);
      a.i[out + slot] = rank_key(rank);
    }
  }
}

// Bytes of shared memory of a block.
inline int topk_shared(int D) {
  const int d_padded = (D + kStep - 1) / kStep * kStep;
  return kRows * static_cast<int>(sizeof(TopkSlots) + sizeof(float) + sizeof(int)) +
         (kRows * d_padded + kKeys * kStride) * static_cast<int>(sizeof(float));
}

}  // namespace pcm
