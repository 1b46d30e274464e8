// Tiles of rows that share a base. All query heads of a key-value head are in one tile (row-major in row, head),
// since they read the same keys. A tile meets its own keys first, variant by variant, then the shared keys in blocks:
// scores, online softmax, values, everything in buffers that stay in the second-level cache.
#include "core/prefix_attn.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <type_traits>
#include <vector>

#include "core/gemm.h"
#include "core/load_row.h"
#include "core/scratch.h"
#include "core/sink.h"
#include "core/vec.h"

namespace pcm {
namespace {

constexpr int kTileRows = 128;  // rows x heads of a tile
constexpr int kStepRows = 48;   // rows x heads of a step
constexpr int kBlock = 256;     // keys of a step
constexpr int kFew = 4;         // own keys up to which single dot products are cheaper than packing
constexpr int kAhead = 8;       // rows whose memory is asked for in advance
// Keys whose packs are held at once, at least: what is more is packed and used in several passes.
constexpr int64_t kPackedKeys = 16384;

template <class E>
constexpr int64_t ld_of(int64_t n) {  // a row of odd cache lines: rows do not fall on the same cache sets
  return n + 64 / static_cast<int64_t>(sizeof(E));
}

struct Row {
  int32_t own_lo, own_hi, shared_lo, shared_hi;
  int n_own() const { return own_hi - own_lo; }
  int n_shared() const { return shared_hi - shared_lo; }
};

// Shared keys that begin at `lo`: the longest prefix that a row of the base sees.
struct Base {
  int64_t lo = 0, n = 0, pack = 0;  // pack: first packed key (a multiple of 32) in the workspace
  int64_t first_tile = 0, tiles = 0;
};

struct Tile {
  int64_t first, count, base;  // rows order[first .. first + count)
};

struct Plan {
  std::vector<int64_t> order;  // rows, base by base
  std::vector<Base> bases;
  std::vector<Tile> tiles;
  std::vector<int64_t> cut_begin, cuts;  // cuts of row r: cuts[cut_begin[r] .. cut_begin[r + 1])
};

Plan make_plan(const PrefixAttn& a, const Row* rows) {
  Plan plan;
  plan.order.resize(a.R);
  std::iota(plan.order.begin(), plan.order.end(), 0);
  const auto key = [&](int64_t r) { return rows[r].n_shared() ? rows[r].shared_lo : -1; };
  const auto before = [&](int64_t x, int64_t y) { return key(x) < key(y); };
  if (!std::is_sorted(plan.order.begin(), plan.order.end(), before))
    std::stable_sort(plan.order.begin(), plan.order.end(), before);
  const int64_t most = std::max<int64_t>(1, kTileRows / (a.H / a.Hkv));
  for (int64_t i = 0; i < a.R;) {
    Base base;
    base.lo = key(plan.order[i]);
    base.first_tile = static_cast<int64_t>(plan.tiles.size());
    while (i < a.R && key(plan.order[i]) == base.lo) {
      // Whole variants go into a tile as long as they fit; what is longer than a tile is cut into equal parts.
      int64_t end = i;
      while (end < a.R && key(plan.order[end]) == base.lo) {
        int64_t next = end;
        const int32_t own = rows[plan.order[end]].own_lo;
        while (next < a.R && key(plan.order[next]) == base.lo && rows[plan.order[next]].own_lo == own) next++;
        if (next - i > most) {
          if (end == i) end = i + (next - i + (next - i + most - 1) / most - 1) / ((next - i + most - 1) / most);
          break;
        }
        end = next;
      }
      for (int64_t j = i; j < end; j++) base.n = std::max<int64_t>(base.n, rows[plan.order[j]].n_shared());
      plan.tiles.push_back({i, end - i, static_cast<int64_t>(plan.bases.size())});
      i = end;
    }
    base.tiles = static_cast<int64_t>(plan.tiles.size()) - base.first_tile;
    plan.bases.push_back(base);
  }
  plan.cut_begin.assign(a.R + 1, 0);
  for (int64_t e = 0; e < a.E; e++) plan.cut_begin[a.cuts[4 * e] + 1]++;
  std::partial_sum(plan.cut_begin.begin(), plan.cut_begin.end(), plan.cut_begin.begin());
  plan.cuts.resize(a.E);
  std::vector<int64_t> at(plan.cut_begin.begin(), plan.cut_begin.end() - 1);
  for (int64_t e = 0; e < a.E; e++) plan.cuts[at[a.cuts[4 * e]]++] = e;
  return plan;
}

// S: storage, E: what products are computed from.
template <class S, class E>
class Kernel {
 public:
  Kernel(const PrefixAttn& a, const TileGemm<E>& gemm, const VecOps& vec)
      : a_(a), rows_(reinterpret_cast<const Row*>(a.rows)), gemm_(gemm), vec_(vec), plan_(make_plan(a, rows_)) {
    group_ = a.H / a.Hkv;
    dp_ = gemm.k_padded(a.D);
    value_panels_ = round_up(a.D, kPanel) / kPanel;
  }

  void run(const ParallelFor& parallel) {
    const int64_t bases = static_cast<int64_t>(plan_.bases.size());
    for (int64_t first = 0, last; first < bases; first = last) {
      int64_t keys = 0;
      for (last = first; last < bases && (last == first || keys + plan_.bases[last].n <= kPackedKeys); last++) {
        plan_.bases[last].pack = keys;
        keys += round_up(plan_.bases[last].n, kPanel);
      }
      pack(first, last, keys, parallel);
      // Units of one base and key-value head follow one another, so that a thread finds the pack in its cache.
      const int64_t tiles =
          plan_.bases[last - 1].first_tile + plan_.bases[last - 1].tiles - plan_.bases[first].first_tile;
      parallel(tiles * a_.Hkv, [&](int64_t begin, int64_t end) {
        const GemmScope<E> scope(gemm_);
        Worker worker(*this);
        int64_t unit = 0;
        for (int64_t b = first; b < last && unit < end; b++)
          for (int64_t hk = 0; hk < a_.Hkv; hk++)
            for (int64_t t = 0; t < plan_.bases[b].tiles; t++, unit++)
              if (unit >= begin && unit < end) worker.tile(plan_.tiles[plan_.bases[b].first_tile + t], hk);
      });
    }
  }

 private:
  static const S* at(const PackedHeads& x, int64_t row, int64_t head) {
    return static_cast<const S*>(x.data) + row * x.row + head * x.head;
  }
  E* keys_of(int64_t key, int64_t hk) { return k_pack_.data() + (hk * packed_ + key) * dp_; }
  E* values_of(int64_t key, int64_t hk) {
    return v_pack_.data() + hk * packed_ * value_panels_ * kPanel + key * kPanel;
  }
  int64_t value_panel() const { return packed_ * kPanel; }

  void pack(int64_t first, int64_t last, int64_t keys, const ParallelFor& parallel) {
    packed_ = keys;
    k_pack_.reserve(a_.Hkv * keys * dp_);
    v_pack_.reserve(a_.Hkv * keys * value_panels_ * kPanel);
    struct Part {
      int64_t key, n, from;  // packed place, number, row of k_shared
    };
    std::vector<Part> parts;
    for (int64_t b = first; b < last; b++)
      for (int64_t i = 0; i < plan_.bases[b].n; i += kBlock)
        parts.push_back(
            {plan_.bases[b].pack + i, std::min<int64_t>(kBlock, plan_.bases[b].n - i), plan_.bases[b].lo + i});
    parallel(static_cast<int64_t>(parts.size()) * a_.Hkv, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        const Part& p = parts[i % parts.size()];
        const int64_t hk = i / static_cast<int64_t>(parts.size());
        pack_keys(keys_of(p.key, hk), at(a_.k_shared, p.from, hk), a_.k_shared.row, p.n, a_.D, dp_);
        pack_values(values_of(p.key, hk), at(a_.v_shared, p.from, hk), a_.v_shared.row, p.n, a_.D,
                    round_up(p.n, kPanel), value_panel());
      }
    });
  }

  // The buffers of one thread and the work on one tile.
  class Worker {
   public:
    explicit Worker(Kernel& k)
        : k_(k), a_(k.a_), m_max_(std::max<int64_t>(kTileRows, k.group_)), d_cols_(n_padded(a_.D)) {
      q_.reserve(m_max_ * k.dp_);
      s_.reserve(m_max_ * ld_of<float>(kBlock));
      if constexpr (!std::is_same_v<E, float>) p_.reserve(m_max_ * ld_of<E>(kBlock));
      acc_.reserve(m_max_ * d_cols_);
      own_k_.reserve(kBlock * k.dp_);
      own_v_.reserve(kBlock * k.value_panels_ * kPanel);
      wide_.reserve(4 * round_up(a_.D, 16));
      m_.resize(m_max_);
      l_.resize(m_max_);
      from_.resize(m_max_);
      to_.resize(m_max_);
      few_.resize(m_max_);
    }

    void tile(const Tile& t, int64_t hk) {
      order_ = k_.plan_.order.data() + t.first;
      count_ = t.count;
      hk_ = hk;
      const int64_t m = count_ * k_.group_;
      std::fill_n(m_.begin(), m, kNoScore);
      std::fill_n(l_.begin(), m, 0.f);
      std::memset(acc_.data(), 0, m * d_cols_ * sizeof(float));
      load_queries();
      own_keys();
      shared_keys(k_.plan_.bases[t.base]);
      finish();
    }

   private:
    const Row& row(int64_t i) const { return k_.rows_[order_[i]]; }
    bool windowed() const { return a_.window > 0; }

    // Rows lie far apart (all heads of a row lie between them), which the processor does not foresee.
    void prefetch(const PackedHeads& x, int64_t row) const {
      const char* p = reinterpret_cast<const char*>(at(x, row, hk_));
      for (int64_t b = 0; b < a_.D * static_cast<int64_t>(sizeof(S)); b += 64) __builtin_prefetch(p + b);
    }

    void load_queries() {
      for (int64_t i = 0; i < count_; i++) {
        if (i + kAhead < count_) {
          const S* p = at(a_.q, order_[i + kAhead], hk_ * k_.group_);
          for (int64_t b = 0; b < a_.D * k_.group_; b += 64 / static_cast<int64_t>(sizeof(S)))
            __builtin_prefetch(p + b);
        }
        for (int64_t g = 0; g < k_.group_; g++) {
          load_row(q_.data() + (i * k_.group_ + g) * k_.dp_, at(a_.q, order_[i], hk_ * k_.group_ + g), a_.D, k_.dp_,
                   sign_of(a_.scale), k_.vec_);
        }
      }
    }

    // Variants in the tile: runs of rows with the same begin of their own keys.
    void own_keys() {
      bool few = false;
      for (int64_t i = 0, end; i < count_; i = end) {
        int most = 0;
        for (end = i; end < count_ && row(end).own_lo == row(i).own_lo; end++) most = std::max(most, row(end).n_own());
        std::fill(few_.begin() + i, few_.begin() + end, most <= kFew);
        if (most > kFew)
          own_blocks(i, end, most);
        else
          few |= most > 0;
      }
      if (few) own_few();
    }

    void own_blocks(int64_t first, int64_t end, int most) {
      for (int64_t k0 = 0; k0 < most; k0 += kBlock) {
        const int64_t n = std::min<int64_t>(kBlock, most - k0);
        while (row(first).n_own() <= k0) first++;  // earlier rows of a causal variant see no key of this block
        const int64_t from = row(first).own_lo + k0;
        pack_keys(own_k_.data(), at(a_.k_own, from, hk_), a_.k_own.row, n, a_.D, k_.dp_);
        pack_values(own_v_.data(), at(a_.v_own, from, hk_), a_.v_own.row, n, a_.D, round_up(n, kPanel),
                    kBlock * kPanel);
        for (int64_t i = first; i < end; i++) {
          const int seen = row(i).n_own();
          range(i, windowed() ? seen - a_.window : 0, seen, k0, n);
        }
        steps(first, end, own_k_.data(), own_v_.data(), kBlock * kPanel, k0, n, true, true);
      }
    }

    // Columns [lo, hi) of row i, clipped to the block [k0, k0 + n).
    void range(int64_t i, int64_t lo, int64_t hi, int64_t k0, int64_t n) {
      const int from = static_cast<int>(std::clamp<int64_t>(lo - k0, 0, n)),
                to = static_cast<int>(std::clamp<int64_t>(hi - k0, 0, n));
      for (int64_t g = 0; g < k_.group_; g++) {
        from_[i * k_.group_ + g] = from;
        to_[i * k_.group_ + g] = to;
      }
    }

    void shared_keys(const Base& base) {
      int64_t lo = base.n, hi = 0, lo_all = 0, hi_all = base.n;  // seen by one row, by all rows
      for (int64_t i = 0; i < count_; i++) {
        const int64_t n = row(i).n_shared(),
                      from = windowed() ? std::max<int64_t>(0, n + row(i).n_own() - a_.window) : 0;
        lo = std::min(lo, from);
        lo_all = std::max(lo_all, from);
        hi = std::max(hi, n);
        hi_all = std::min(hi_all, n);
      }
      for (int64_t k0 = lo / kPanel * kPanel; k0 < hi; k0 += kBlock) {
        const int64_t n = std::min<int64_t>(kBlock, hi - k0);
        const bool ranges = lo_all > k0 || hi_all < k0 + n;
        if (ranges)
          for (int64_t i = 0; i < count_; i++) {
            const int64_t seen = row(i).n_shared();
            range(i, windowed() ? seen + row(i).n_own() - a_.window : 0, seen, k0, n);
          }
        steps(0, count_, k_.keys_of(base.pack + k0, hk_), k_.values_of(base.pack + k0, hk_), k_.value_panel(), k0, n,
              ranges, false);
      }
    }

    // The rows [first, end) against n packed keys, a few rows at a time: their scores stay in the first-level cache.
    void steps(int64_t first, int64_t end, const E* keys, const E* values, int64_t panel, int64_t k0, int64_t n,
               bool ranges, bool own) {
      const int64_t parts = ((end - first) * k_.group_ + kStepRows - 1) / kStepRows;
      for (int64_t p = 0, next; p < parts; p++, first = next) {
        next = first + (end - first + parts - p - 1) / (parts - p);
        int64_t seen = n;
        if (own) {  // a causal variant: the first rows see the first keys only
          seen = 0;
          for (int64_t i = first; i < next; i++)
            seen = std::max<int64_t>(seen, std::min<int64_t>(n, row(i).n_own() - k0));
        }
        if (next > first && seen > 0) step(first, next, keys, values, panel, k0, seen, ranges, own);
      }
    }

    // Scores, softmax and values.
    void step(int64_t first, int64_t end, const E* keys, const E* values, int64_t panel, int64_t k0, int64_t n,
              bool ranges, bool own) {
      const int64_t r = first * k_.group_;
      const int m = static_cast<int>((end - first) * k_.group_), cols = static_cast<int>(n);
      float* s = s_.data();
      constexpr int64_t lds = ld_of<float>(kBlock);
      k_.gemm_.run(m, cols, static_cast<int>(a_.D), q_.data() + r * k_.dp_, k_.dp_, keys, k_.dp_ * kPanel, s, lds,
                   false);
      if (a_.softcap > 0) k_.vec_.softcap(s, lds, m, n, positive(a_.scale), a_.softcap);
      cut(first, end, k0, n, own);
      SoftmaxTile t = state(r, m, cols);
      if (ranges) t.from = &from_[r], t.to = &to_[r];
      float* acc = acc_.data() + r * d_cols_;
      if constexpr (std::is_same_v<E, float>) {
        k_.vec_.softmax_f32(t, s, lds);
        k_.gemm_.run(m, static_cast<int>(a_.D), cols, s, lds, values, panel, acc, d_cols_, true);
      } else {
        constexpr int64_t ldp = ld_of<E>(kBlock);
        k_.vec_.softmax_bf16(t, p_.data(), ldp);
        k_.gemm_.run(m, static_cast<int>(a_.D), cols, p_.data(), ldp, values, panel, acc, d_cols_, true);
      }
    }

    SoftmaxTile state(int64_t r, int m, int cols) {
      SoftmaxTile t;
      t.rows = m, t.cols = cols, t.s = s_.data(), t.lds = ld_of<float>(kBlock);
      t.scale = a_.softcap > 0 ? 1.f : positive(a_.scale);
      t.m = &m_[r], t.l = &l_[r];
      t.acc = acc_.data() + r * d_cols_, t.ld_acc = d_cols_, t.acc_cols = static_cast<int>(a_.D);
      return t;
    }

    // Scores of cut keys among the n keys from k0 on become -inf.
    void cut(int64_t first, int64_t end, int64_t k0, int64_t n, bool own) {
      if (a_.E == 0) return;
      for (int64_t i = first; i < end; i++) {
        const int64_t r = order_[i], p0 = k0 + (own ? row(i).n_shared() : 0);  // position of the first column
        for (int64_t c = k_.plan_.cut_begin[r]; c < k_.plan_.cut_begin[r + 1]; c++) {
          const int32_t* e = a_.cuts + 4 * k_.plan_.cuts[c];
          const int64_t lo = std::max<int64_t>(e[2] - p0, 0), hi = std::min<int64_t>(e[3] - p0, n);
          for (int64_t g = 0; g < k_.group_; g++) {
            if (e[1] >= 0 && e[1] != hk_ * k_.group_ + g) continue;
            float* s = s_.data() + ((i - first) * k_.group_ + g) * ld_of<float>(kBlock);
            for (int64_t j = lo; j < hi; j++) s[j] = -std::numeric_limits<float>::infinity();
          }
        }
      }
    }

    // Rows with at most kFew own keys: one dot product each.
    void own_few() {
      const int64_t d = a_.D, step = round_up(d, 16);
      float *q = wide_.data(), *k = q + step;
      constexpr int64_t lds = ld_of<float>(kBlock);
      for (int64_t i = 0; i < count_; i++) {
        const int n = few_[i] ? row(i).n_own() : 0;
        range(i, windowed() ? n - a_.window : 0, n, 0, kFew);
        if (i + kAhead < count_ && row(i + kAhead).n_own() > 0) {
          prefetch(a_.k_own, row(i + kAhead).own_lo);
          prefetch(a_.v_own, row(i + kAhead).own_lo);
        }
        for (int j = 0; j < n; j++) {
          const float* kj = wide(k, at(a_.k_own, row(i).own_lo + j, hk_));
          for (int64_t g = 0; g < k_.group_; g++) {
            const int64_t r = i * k_.group_ + g;
            s_[r * lds + j] = k_.vec_.dot(wide(q, q_.data() + r * k_.dp_), kj, d);
          }
        }
      }
      const int m = static_cast<int>(count_ * k_.group_);
      if (a_.softcap > 0)
        for (int64_t r = 0; r < m; r++)
          k_.vec_.softcap(s_.data() + r * lds, lds, 1, to_[r], positive(a_.scale), a_.softcap);
      cut(0, count_, 0, kFew, true);
      SoftmaxTile t = state(0, m, kFew);
      t.from = from_.data(), t.to = to_.data();
      k_.vec_.softmax_f32(t, s_.data(), lds);
      for (int64_t i = 0; i < count_; i++)
        for (int j = 0; j < to_[i * k_.group_]; j++) {
          const float* vj = wide(k, at(a_.v_own, row(i).own_lo + j, hk_));
          for (int64_t g = 0; g < k_.group_; g++) {
            const int64_t r = i * k_.group_ + g;
            if (s_[r * lds + j] != 0) k_.vec_.axpy(acc_.data() + r * d_cols_, s_[r * lds + j], vj, d);
          }
        }
    }

    template <class T>
    const float* wide(float* buffer, const T* x) const {
      if constexpr (std::is_same_v<T, float>) return x;
      k_.vec_.to_f32(buffer, x, type_of<T>(), a_.D);
      return buffer;
    }

    void finish() {
      S* z = static_cast<S*>(a_.z);
      for (int64_t i = 0; i < count_; i++)
        for (int64_t g = 0; g < k_.group_; g++) {
          const int64_t r = i * k_.group_ + g, h = hk_ * k_.group_ + g, out = order_[i] * a_.H + h;
          if (l_[r] == 0) {
            std::memset(static_cast<void*>(z + out * a_.D), 0, a_.D * sizeof(S));
            a_.lse[out] = a_.sinks == nullptr ? -std::numeric_limits<float>::infinity() : a_.sinks[h];
            continue;
          }
          const double scale = a_.softcap > 0 ? 1. : positive(a_.scale);
          const Normaliser whole = joined(m_[r] * scale + std::log(l_[r]), a_.sinks, h);
          const float inv = 1.f / l_[r] * static_cast<float>(whole.share);
          k_.vec_.from_f32(z + out * a_.D, a_.type, acc_.data() + r * d_cols_, a_.D, inv);
          a_.lse[out] = static_cast<float>(whole.lse);
        }
    }

    Kernel& k_;
    const PrefixAttn& a_;
    int64_t m_max_, d_cols_;
    Scratch<E> q_, p_, own_k_, own_v_;
    Scratch<float> s_, acc_, wide_;
    std::vector<float> m_, l_;
    std::vector<int> from_, to_;
    std::vector<char> few_;  // rows that own_few takes
    const int64_t* order_ = nullptr;
    int64_t count_ = 0, hk_ = 0;
  };

  const PrefixAttn& a_;
  const Row* rows_;
  const TileGemm<E>& gemm_;
  const VecOps& vec_;
  Plan plan_;
  int64_t group_, dp_, value_panels_, packed_ = 0;
  Scratch<E> k_pack_, v_pack_;
};

}  // namespace

void prefix_attn(const PrefixAttn& a, const ParallelFor& parallel, Isa level) {
  if (a.R == 0) return;
  // Emulated tiles (tests) run on processors whose row operations end below.
  const VecOps& vec = vec_ops(std::min(level, isa()));
  if (a.type == Type::f32) return Kernel<float, float>(a, gemm_f32(level), vec).run(parallel);
  if (a.type == Type::f16) return Kernel<f16, float>(a, gemm_f32(level), vec).run(parallel);
  if (const TileGemm<bf16>* g = gemm_bf16(level)) return Kernel<bf16, bf16>(a, *g, vec).run(parallel);
  Kernel<bf16, float>(a, gemm_f32(level), vec).run(parallel);
}

}  // namespace pcm
