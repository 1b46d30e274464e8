#include "core/attn_weights.h"

#include <cmath>

#include "core/topk_rows.h"

namespace pcm {
namespace {

// The packed keys of the pairs that a pipeline has under way.
template <class E, class Src>
class PackedKeys {
  const Attn& a_;

 public:
  PackedKeys(const Attn& a, int64_t slots) : a_(a), keys_(slots * size_) {}

  void pack(int64_t pair, int64_t slot, int64_t block) {
    const int64_t n0 = block * kBlockKeys, n = std::min(kBlockKeys, a_.S - n0);
    pack_key_block<E, Src>(keys_.data() + slot * size_, a_, pair, n0, n, d_padded);
  }
  const E* of(int64_t slot) const { return keys_.data() + slot * size_; }

  const Engine<E> engine{};
  const int64_t d_padded = engine.gemm.k_padded(a_.D);

 private:
  const int64_t size_ = packed_keys_size(a_, d_padded);
  Scratch<E> keys_;
};

// Sums over rows in two levels, tile by tile: the rounding grows with the number of tiles, not of rows.
template <class E, class Src>
void column_sums_as(const ColsumArgs& a, int workers, const Parallel& parallel) {
  const int64_t blocks = key_blocks(a), tiles = tiles_per_pair(a), group = a.group();
  Pipeline pipeline(a.B * a.Hkv, blocks + tiles, blocks, workers);
  PackedKeys<E, Src> keys(a, pipeline.slots());
  const Engine<E>& e = keys.engine;
  // Every block of keys meets all the rows after it: they are laid out as operands once.
  const int64_t q_size = a.T * group * keys.d_padded;
  Scratch<E> queries(pipeline.slots() * q_size);

  const auto block = [&](int64_t pair, int64_t n0, const E* q, const E* packed, float* s, float* total, float* part) {
    const int64_t b = pair / a.Hkv, hk = pair % a.Hkv, n = std::min(kBlockKeys, a.S - n0);
    int from[kTileRows], to[kTileRows];
    std::fill_n(total, group * kBlockKeys, 0.f);
    for (int64_t j = 0; j < tiles; j++) {
      const Tile tile = tile_at(a, pair, j);
      if (a.end_key((tile.r0 + tile.rows - 1) / group) <= n0) continue;
      if (a.first_key(b, tile.r0 / group) >= n0 + n) break;
      score_tile(s, q + tile.r0 * keys.d_padded, packed, a, tile.rows, n0, n, keys.d_padded, e);
      visible_columns(a, tile, n0, n, from, to);
      std::fill_n(part, group * kBlockKeys, 0.f);
      for (int r = 0; r < tile.rows; r++) {
        if (from[r] >= to[r]) continue;
        const int64_t i = (tile.r0 + r) / group, g = (tile.r0 + r) % group, h = hk * group + g;
        float* row = s + r * kBlockKeys + from[r];
        float weight = 1;
        if (a.weights != nullptr) weight = a.weights[b * a.weights_batch + h * a.weights_head + i * a.weights_row];
        e.vec.exp_row(row, row, to[r] - from[r], a.unit(), a.lse_of(b, h, i));
        e.vec.axpy(part + g * kBlockKeys + from[r], weight, row, to[r] - from[r]);
      }
      e.vec.axpy(total, 1.f, part, group * kBlockKeys);
    }
    for (int64_t g = 0; g < group; g++)
      std::copy_n(total + g * kBlockKeys, n, a.out + (b * a.H + hk * group + g) * a.S + n0);
  };

  parallel([&] {
    GemmScope<E> scope(e.gemm);
    Scratch<float> s(kTileRows * kBlockKeys), total(group * kBlockKeys), part(group * kBlockKeys);
    const auto pack = [&](int64_t pair, int64_t slot, int64_t i) {
      if (i < blocks) return keys.pack(pair, slot, i);
      const Tile tile = tile_at(a, pair, i - blocks);
      load_tile<E, Src>(queries.data() + slot * q_size + tile.r0 * keys.d_padded, a, tile, keys.d_padded, e.vec);
    };
    // The first keys are seen by most rows: they come first.
    pipeline.take(pack, [&](int64_t pair, int64_t slot, int64_t i) {
      block(pair, i * kBlockKeys, queries.data() + slot * q_size, keys.of(slot), s.data(), total.data(), part.data());
    });
  });
}

template <class E, class Src>
void pattern_rows_as(const RowsArgs& a, int workers, const Parallel& parallel) {
  const int64_t group = a.group(), tiles = (a.R * group + kTileRows - 1) / kTileRows;
  Pipeline pipeline(a.B * a.Hkv, key_blocks(a), tiles, workers);
  PackedKeys<E, Src> keys(a, pipeline.slots());
  const Engine<E>& e = keys.engine;

  const auto chosen_tile = [&](int64_t pair, int64_t r0, const E* packed, E* q, float* s) {
    const int64_t b = pair / a.Hkv, hk = pair % a.Hkv;
    const int rows = static_cast<int>(std::min(kTileRows, a.R * group - r0));
    int64_t begin = a.S, end = 0;  // the keys that some row of the tile sees
    const auto out = [&](int64_t h, int r) { return a.out + ((b * a.H + h) * a.R + (r0 + r) / group) * a.S; };
    for (int r = 0; r < rows; r++) {
      const int64_t i = a.rows[(r0 + r) / group], h = hk * group + (r0 + r) % group;
      load_row(q + r * keys.d_padded, row_of<Src>(a.q, b, h, i), a.D, keys.d_padded, a.q_sign(), e.vec);
      begin = std::min(begin, a.first_key(b, i)), end = std::max(end, a.end_key(i));
      std::fill_n(out(h, r), a.S, 0.f);
    }
    for (int64_t n0 = begin / kBlockKeys * kBlockKeys; n0 < end; n0 += kBlockKeys) {
      const int64_t n = std::min(kBlockKeys, end - n0);
      score_tile(s, q, packed, a, rows, n0, n, keys.d_padded, e);
      for (int r = 0; r < rows; r++) {
        const int64_t i = a.rows[(r0 + r) / group], h = hk * group + (r0 + r) % group;
        const int64_t from = std::max(a.first_key(b, i), n0), to = std::min(a.end_key(i), n0 + n);
        if (from < to)
          e.vec.exp_row(out(h, r) + from, s + r * kBlockKeys + (from - n0), to - from, a.unit(), a.lse_of(b, h, i));
      }
    }
  };

  parallel([&] {
    GemmScope<E> scope(e.gemm);
    Scratch<float> s(kTileRows * kBlockKeys);
    Scratch<E> q(kTileRows * keys.d_padded);
    pipeline.take([&](int64_t pair, int64_t slot, int64_t i) { keys.pack(pair, slot, i); },
                  [&](int64_t pair, int64_t slot, int64_t i) {
                    chosen_tile(pair, i * kTileRows, keys.of(slot), q.data(), s.data());
                  });
  });
}

template <class Src>
void pattern_entries_as(const EntriesArgs& a, const Parallel& parallel) {
  const VecOps& vec = vec_ops();
  constexpr int64_t kChunk = 256;  // entries of one head to a task
  const int64_t chunks = (a.E + kChunk - 1) / kChunk;
  std::atomic<int64_t> next{0};
  parallel([&] {
    Scratch<float> q(a.D), k(a.D);
    for (int64_t t; (t = next.fetch_add(1, std::memory_order_relaxed)) < a.B * a.H * chunks;) {
      const int64_t b = t / chunks / a.H, h = t / chunks % a.H;
      for (int64_t e = t % chunks * kChunk; e < std::min(a.E, (t % chunks + 1) * kChunk); e++) {
        const int64_t i = a.qi[e], j = a.ki[e];
        float p = 0;
        if (j >= a.first_key(b, i) && j < a.end_key(i)) {
          vec.to_f32(q.data(), row_of<Src>(a.q, b, h, i), type_of<Src>(), a.D);
          vec.to_f32(k.data(), row_of<Src>(a.k, b, h / a.group(), j), type_of<Src>(), a.D);
          float s = a.scale == 0 ? 0 : vec.dot(q.data(), k.data(), a.D) * a.q_sign();
          if (a.softcap > 0) vec.softcap(&s, 1, 1, 1, a.positive_scale(), a.softcap);
          p = std::exp(s * a.unit() - a.lse_of(b, h, i));
        }
        a.out[(b * a.H + h) * a.E + e] = p;
      }
    }
  });
}

template <class E, class Src>
void top_keys_as(const TopkArgs& a, int workers, const Parallel& parallel) {
  const int64_t group = a.group(), tiles = tiles_per_pair(a);
  const TopkOps& ops = topk_ops();
  Pipeline pipeline(a.B * a.Hkv, key_blocks(a), tiles, workers);
  PackedKeys<E, Src> keys(a, pipeline.slots());
  const Engine<E>& e = keys.engine;

  const auto ranked_tile = [&](const Tile& tile, const E* packed, E* q, float* s, TopkRow* top) {
    int from[kTileRows], to[kTileRows];
    int32_t columns[kBlockKeys + 15];
    load_tile<E, Src>(q, a, tile, keys.d_padded, e.vec);
    for (int r = 0; r < tile.rows; r++) top[r].reset(a.topk);
    const int64_t end = a.end_key((tile.r0 + tile.rows - 1) / group);
    const int64_t begin = a.first_key(tile.b, tile.r0 / group) / kBlockKeys * kBlockKeys;
    for (int64_t n0 = begin; n0 < end; n0 += kBlockKeys) {
      const int64_t n = std::min(kBlockKeys, end - n0);
      score_tile(s, q, packed, a, tile.rows, n0, n, keys.d_padded, e);
      visible_columns(a, tile, n0, n, from, to);
      for (int r = 0; r < tile.rows; r++)
        top[r].scan(s + r * kBlockKeys, from[r], to[r], static_cast<int32_t>(n0), columns, ops);
    }
    for (int r = 0; r < tile.rows; r++) {
      const int64_t i = (tile.r0 + r) / group, h = tile.hk * group + (tile.r0 + r) % group;
      const int64_t row = (tile.b * a.H + h) * a.T + i;
      const float lse = a.lse_of(tile.b, h, i);
      top[r].merge();
      for (int j = 0; j < a.topk; j++) {
        const uint64_t rank = top[r].list[j];
        a.p[row * a.topk + j] = rank == 0 ? 0.f : std::exp(rank_score(rank) * a.unit() - lse);
        a.i[row * a.topk + j] = rank_key(rank);
      }
    }
  };

  parallel([&] {
    GemmScope<E> scope(e.gemm);
    Scratch<float> s(kTileRows * kBlockKeys);
    Scratch<E> q(kTileRows * keys.d_padded);
    Scratch<TopkRow> top(kTileRows);
    pipeline.take([&](int64_t pair, int64_t slot, int64_t i) { keys.pack(pair, slot, i); },
                  [&](int64_t pair, int64_t slot, int64_t i) {
                    ranked_tile(tile_at(a, pair, tiles - 1 - i), keys.of(slot), q.data(), s.data(), top.data());
                  });
  });
}

}  // namespace

void column_sums(const ColsumArgs& args, int workers, const Parallel& parallel) {
  with_types(args.type, [&]<class E, class Src>() { column_sums_as<E, Src>(args, workers, parallel); });
}

void pattern_rows(const RowsArgs& args, int workers, const Parallel& parallel) {
  if (args.R == 0) return;
  with_types(args.type, [&]<class E, class Src>() { pattern_rows_as<E, Src>(args, workers, parallel); });
}

void pattern_entries(const EntriesArgs& args, int, const Parallel& parallel) {
  with_types(args.type, [&]<class E, class Src>() { pattern_entries_as<Src>(args, parallel); });
}

void top_keys(const TopkArgs& args, int workers, const Parallel& parallel) {
  with_types(args.type, [&]<class E, class Src>() { top_keys_as<E, Src>(args, workers, parallel); });
}

}  // namespace pcm
