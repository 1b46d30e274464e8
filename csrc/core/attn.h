// What the attention kernels share: their arguments, who sees whom, tiles of query rows, packed keys. Torch-free.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <type_traits>
#include <vector>

#include "core/gemm.h"
#include "core/load_row.h"
#include "core/scratch.h"
#include "core/types.h"
#include "core/vec.h"

namespace pcm {

// A [B, heads, tokens, D] tensor: contiguous in D, the other strides (in elements) are free.
struct Heads {
  const void* data = nullptr;
  int64_t batch = 0, head = 0, token = 0;
};

struct Attn {
  Type type = Type::f32;
  int64_t B = 0, H = 0, Hkv = 0, T = 0, S = 0, D = 0;
  Heads q, k;
  const int32_t* starts = nullptr;  // [B], first valid key; null: 0
  float scale = 1;
  int64_t window = 0;  // 0: none
  float softcap = 0;   // 0: none

  int64_t group() const { return H / Hkv; }
  // The keys that query row i of sequence b sees: [first, end), perhaps empty.
  int64_t end_key(int64_t i) const { return i + S - T + 1; }
  int64_t first_key(int64_t b, int64_t i) const {
    int64_t first = starts != nullptr ? std::max<int64_t>(starts[b], 0) : 0;
    if (window > 0) first = std::max(first, end_key(i) - window);
    return first;
  }
  float q_sign() const { return sign_of(scale); }
  float positive_scale() const { return positive(scale); }
  // What turns a finished score into natural units: a capped score is in them already.
  float unit() const { return softcap > 0 ? 1.f : positive_scale(); }
};

// Query rows of one key-value head, r = i * group + (head within the group): so that a tile's rows share keys and
// values, and a single query position of a whole group is still one product.
constexpr int64_t kTileRows = 64;
constexpr int64_t kBlockKeys = 128;

struct Tile {
  int64_t b, hk, r0;
  int rows;
};

inline int64_t tile_step(const Attn& a) {
  return a.group() < kTileRows ? kTileRows / a.group() * a.group() : kTileRows;
}
inline int64_t tiles_per_pair(const Attn& a) { return (a.T * a.group() + tile_step(a) - 1) / tile_step(a); }

inline int64_t key_blocks(const Attn& a) { return (a.S + kBlockKeys - 1) / kBlockKeys; }

inline Tile tile_at(const Attn& a, int64_t pair, int64_t index) {
  const int64_t r0 = index * tile_step(a);
  return {pair / a.Hkv, pair % a.Hkv, r0, static_cast<int>(std::min(tile_step(a), a.T * a.group() - r0))};
}

// The visible columns of each row of a tile inside the keys [n0, n0 + n). Returns true if every row sees all of them.
inline bool visible_columns(const Attn& a, const Tile& t, int64_t n0, int64_t n, int* from, int* to) {
  bool all = true;
  for (int r = 0; r < t.rows; r++) {
    const int64_t i = (t.r0 + r) / a.group();
    from[r] = static_cast<int>(std::clamp<int64_t>(a.first_key(t.b, i) - n0, 0, n));
    to[r] = static_cast<int>(std::clamp<int64_t>(a.end_key(i) - n0, 0, n));
    all = all && from[r] == 0 && to[r] == n;
  }
  return all;
}

// Runs its argument once on every worker thread; returns when all are done.
using Parallel = std::function<void(const std::function<void()>&)>;

// Packing and work, pair by pair (one sequence and key-value head), without a barrier in between: all threads take
// tasks from one sequence, in which a pair's keys are packed a few pairs before they are used, into one of `slots`
// places. A task waits only for earlier tasks, which other threads are at, so there is always one that moves. Every
// task writes its own outputs: who takes it is immaterial to the result.
class Pipeline {
 public:
  // `packs` and `tasks` of each pair.
  Pipeline(int64_t pairs, int64_t packs, int64_t tasks, int workers)
      : pairs_(pairs),
        packs_(packs),
        tasks_(tasks),
        ahead_(std::min(pairs, 2 + 2 * workers / std::max<int64_t>(tasks, 1))),
        packed_(pairs),
        done_(pairs) {}

  // How many pairs are kept packed at a time.
  int64_t slots() const { return std::min(pairs_, ahead_ + 1); }

  // Called by every thread: pack(pair, slot, i) for i below `packs`, work(pair, slot, i) for i below `tasks`.
  template <class Pack, class Work>
  void take(Pack pack, Work work) {
    const int64_t total = pairs_ * (packs_ + tasks_), turn = packs_ + tasks_, head = ahead_ * packs_;
    for (int64_t t; (t = next_.fetch_add(1, std::memory_order_relaxed)) < total;) {
      if (t < head) {
        do_pack(t / packs_, t % packs_, pack);
      } else if (t - head < (pairs_ - ahead_) * turn) {
        const int64_t pair = (t - head) / turn, i = (t - head) % turn;
        i < tasks_ ? do_work(pair, i, work) : do_pack(pair + ahead_, i - tasks_, pack);
      } else {
        const int64_t rest = t - head - (pairs_ - ahead_) * turn;
        do_work(pairs_ - ahead_ + rest / tasks_, rest % tasks_, work);
      }
    }
  }

 private:
  static void wait(const std::atomic<int64_t>& count, int64_t wanted) {
    while (count.load(std::memory_order_acquire) < wanted) std::this_thread::yield();
  }
  template <class Pack>
  void do_pack(int64_t pair, int64_t i, Pack& pack) {
    if (pair >= slots()) wait(done_[pair - slots()], tasks_);  // the slot's last user
    pack(pair, pair % slots(), i);
    packed_[pair].fetch_add(1, std::memory_order_release);
  }
  template <class Work>
  void do_work(int64_t pair, int64_t i, Work& work) {
    wait(packed_[pair], packs_);
    work(pair, pair % slots(), i);
    done_[pair].fetch_add(1, std::memory_order_release);
  }

  const int64_t pairs_, packs_, tasks_, ahead_;
  std::atomic<int64_t> next_{0};
  std::vector<std::atomic<int64_t>> packed_, done_;
};

// The tile products and row operations of one element type E of the packed operands.
template <class E>
struct Engine;
template <>
struct Engine<float> {
  const TileGemm<float>& gemm = gemm_f32();
  const VecOps& vec = vec_ops();
};
template <>
struct Engine<bf16> {
  const TileGemm<bf16>& gemm = *gemm_bf16();
  const VecOps& vec = vec_ops();
};

// Calls f.template operator()<E, Src>(): E the operand type of the products, Src the storage type.
template <class F>
void with_types(Type type, F&& f) {
  if (type == Type::f32)
    f.template operator()<float, float>();
  else if (type == Type::f16)
    f.template operator()<float, f16>();
  else if (gemm_bf16() != nullptr)
    f.template operator()<bf16, bf16>();
  else
    f.template operator()<float, bf16>();
}

template <class Src>
const Src* row_of(const Heads& x, int64_t b, int64_t h, int64_t i) {
  return static_cast<const Src*>(x.data) + b * x.batch + h * x.head + i * x.token;
}

template <class E, class Src>
void load_tile(E* out, const Attn& a, const Tile& t, int64_t d_padded, const VecOps& vec) {
  for (int r = 0; r < t.rows; r++) {
    const int64_t i = (t.r0 + r) / a.group(), h = t.hk * a.group() + (t.r0 + r) % a.group();
    load_row(out + r * d_padded, row_of<Src>(a.q, t.b, h, i), a.D, d_padded, a.q_sign(), vec);
  }
}

// Packed K^T of one pair: panels of 32 keys, one after another.
inline int64_t packed_keys_size(const Attn& a, int64_t d_padded) { return round_up(a.S, kPanel) * d_padded; }

template <class E, class Src>
void pack_key_block(E* out, const Attn& a, int64_t pair, int64_t n0, int64_t n, int64_t d_padded) {
  pack_keys(out + n0 * d_padded, row_of<Src>(a.k, pair / a.Hkv, pair % a.Hkv, n0), a.k.token, n, a.D, d_padded);
}

// Finished scores of a tile against the keys [n0, n0 + n): s[rows][kBlockKeys], in units of `unit()`.
template <class E>
void score_tile(float* s, const E* q, const E* keys, const Attn& a, int rows, int64_t n0, int64_t n, int64_t d_padded,
                const Engine<E>& e) {
  e.gemm.run(rows, static_cast<int>(n), static_cast<int>(a.D), q, d_padded, keys + n0 * d_padded, d_padded * kPanel, s,
             kBlockKeys, false);
  if (a.softcap > 0) e.vec.softcap(s, kBlockKeys, rows, n, a.positive_scale(), a.softcap);
}

}  // namespace pcm
