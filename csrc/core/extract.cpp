#include "core/extract.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/sink.h"

namespace pcm {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// Consecutive keys of one segment.
struct Run {
  int64_t begin, end;
  int64_t label;
};

// The segments of one sequence as runs, with the first run that reaches into each block of keys.
struct Runs {
  std::vector<Run> runs;
  std::vector<size_t> first;

  Runs(const int32_t* labels, int64_t S, int64_t n_segments) {
    for (int64_t j = 0; j < S; j++) {
      const int64_t g = labels[j];
      if (g < 0 || g >= n_segments) continue;
      if (!runs.empty() && runs.back().end == j && runs.back().label == g)
        runs.back().end++;
      else
        runs.push_back({j, j + 1, g});
    }
    size_t at = 0;
    for (int64_t n0 = 0; n0 < S; n0 += kBlockKeys) {
      while (at < runs.size() && runs[at].end <= n0) at++;
      first.push_back(at);
    }
  }
};

// Up to so many runs in a block of keys, adding up each is cheaper than a product with their indicators.
constexpr int64_t kRunsPerBlock = 12;

typedef float Float4 __attribute__((vector_size(16)));

inline float range_sum(const float* p, int64_t n) {
  Float4 a{}, b{}, c{}, d{};
  int64_t i = 0;
  const auto load = [&](int64_t at) {
    Float4 x;
    __builtin_memcpy(&x, p + at, sizeof x);
    return x;
  };
  for (; i + 16 <= n; i += 16) a += load(i), b += load(i + 4), c += load(i + 8), d += load(i + 12);
  for (; i + 4 <= n; i += 4) a += load(i);
  a = (a + b) + (c + d);
  float sum = (a[0] + a[1]) + (a[2] + a[3]);
  for (; i < n; i++) sum += p[i];
  return sum;
}

template <class E, class Src>
class Extractor {
 public:
  Extractor(const ExtractArgs& args, int workers, const Parallel& parallel)
      : a(args), workers_(workers), parallel_(parallel) {
    const int64_t sequences = a.segments == nullptr ? 0 : a.segments_batch == 0 ? 1 : a.B;
    for (int64_t b = 0; b < sequences; b++) {
      runs_.emplace_back(a.segments + b * a.segments_batch, a.S, a.n_segments);
      onehot_ = onehot_ || static_cast<int64_t>(runs_.back().runs.size()) > kRunsPerBlock * (a.S / kBlockKeys + 1);
    }
    columns_ = a.C + (onehot_ ? a.n_segments : 0);
    feature_heads_ = columns_ == 0 ? 0 : a.readout_head != 0 ? a.group() : 1;
  }

  void run() {
    const int64_t tiles = tiles_per_pair(a);
    Pipeline pipeline(a.B * a.Hkv, key_blocks(a), tiles, workers_);
    keys_.reserve(pipeline.slots() * keys_size_);
    values_.reserve(pipeline.slots() * values_size_);
    features_.reserve(pipeline.slots() * feature_heads_ * features_size());
    parallel_([&] {
      Worker w(*this);
      // The heaviest tiles of a pair, those of its last rows, come first: the light ones fill the gaps at the end.
      pipeline.take([&](int64_t pair, int64_t slot, int64_t i) { w.pack(pair, slot, i * kBlockKeys); },
                    [&](int64_t pair, int64_t slot, int64_t i) { w.tile(tile_at(a, pair, tiles - 1 - i), slot); });
    });
  }

 private:
  int64_t features_size() const { return round_up(columns_, kPanel) * s_padded_; }

  // The state of one thread: a tile of query rows goes over the keys, its sums side by side in `acc`:
  // [z: D | readout and indicators | mass by runs], each padded to 16, so that one rescaling serves all.
  class Worker {
   public:
    explicit Worker(Extractor& x) : x(x), a(x.a), scope_(x.engine_.gemm), scope_f32_(gemm_f32()) {
      ld_ = n_padded(a.D) + n_padded(x.columns_) + (by_runs() ? n_padded(a.n_segments) : 0);
      acc_.reserve(kTileRows * ld_);
      q_.reserve(kTileRows * x.d_padded_);
      s_.reserve(kTileRows * kBlockKeys);
      rows_.reserve(kBlockKeys * x.columns_);
      if constexpr (!std::is_same_v<E, float>) p_.reserve(kTileRows * kBlockKeys);
    }

    void pack(int64_t pair, int64_t slot, int64_t n0) {
      const int64_t b = pair / a.Hkv, hk = pair % a.Hkv, n = std::min(kBlockKeys, a.S - n0), C = x.columns_;
      const int64_t n_rows = round_up(n, kPanel), panel = x.s_padded_ * kPanel;
      pack_key_block<E, Src>(x.keys_.data() + slot * x.keys_size_, a, pair, n0, n, x.d_padded_);
      E* values = x.values_.data() + slot * x.values_size_ + n0 * kPanel;
      pack_values(values, row_of<Src>(a.v, b, hk, n0), a.v.token, n, a.D, n_rows, panel);
      for (int64_t g = 0; g < x.feature_heads_; g++) {
        for (int64_t j = 0; j < n; j++) {
          float* row = rows_.data() + j * C;
          if (a.C > 0) {
            const int64_t h = hk * a.group() + g;
            const float* from = a.readout + b * a.readout_batch + h * a.readout_head + (n0 + j) * a.readout_key;
            std::memcpy(row, from, a.C * sizeof(float));
          }
          if (x.onehot_) {
            const int64_t label = a.segments[b * a.segments_batch + n0 + j];
            for (int64_t i = 0; i < a.n_segments; i++) row[a.C + i] = i == label ? 1.f : 0.f;
          }
        }
        float* features = x.features_.data() + (slot * x.feature_heads_ + g) * x.features_size() + n0 * kPanel;
        pack_values(features, rows_.data(), C, n, C, n_rows, panel);
      }
    }

    void tile(const Tile& t, int64_t slot) {
      load_tile<E, Src>(q_.data(), a, t, x.d_padded_, x.engine_.vec);
      std::fill_n(acc_.data(), t.rows * ld_, 0.f);
      std::fill_n(m_, t.rows, kNoScore);
      std::fill_n(l_, t.rows, 0.f);
      std::fill_n(u_, t.rows, 0.f);
      std::fill_n(&top_s_[0][0], t.rows * kInlineTopk, -kInf);
      std::fill_n(&top_i_[0][0], t.rows * kInlineTopk, -1);
      const int64_t group = a.group(), last = (t.r0 + t.rows - 1) / group;
      const int64_t first = a.first_key(t.b, t.r0 / group) / kBlockKeys * kBlockKeys, end = a.end_key(last);
      for (int64_t n0 = first; n0 < end; n0 += kBlockKeys) block(t, slot, n0, std::min(kBlockKeys, end - n0));
      finish(t);
    }

   private:
    bool by_runs() const { return a.segments != nullptr && !x.onehot_; }

    void block(const Tile& t, int64_t slot, int64_t n0, int64_t n) {
      const VecOps& vec = x.engine_.vec;
      float* s = s_.data();
      score_tile(s, q_.data(), x.keys_.data() + slot * x.keys_size_, a, t.rows, n0, n, x.d_padded_, x.engine_);
      const bool all = visible_columns(a, t, n0, n, from_, to_);
      if (a.topk > 0)
        for (int r = 0; r < t.rows; r++)
          topk_.insert(s + r * kBlockKeys, from_[r], to_[r], static_cast<int32_t>(n0), top_s_[r], top_i_[r], a.topk);
      SoftmaxTile soft;
      soft.rows = t.rows;
      soft.cols = static_cast<int>(n);
      soft.s = s;
      soft.lds = kBlockKeys;
      soft.scale = a.unit();
      soft.m = m_;
      soft.l = l_;
      soft.acc = acc_.data();
      soft.ld_acc = ld_;
      soft.acc_cols = static_cast<int>(ld_);
      if (!all) soft.from = from_, soft.to = to_;
      if (a.entropy != nullptr) soft.u = u_;
      const E* p;
      if constexpr (std::is_same_v<E, float>) {
        vec.softmax_f32(soft, s, kBlockKeys);
        p = s;
      } else if (by_runs() || x.columns_ > 0) {
        // Masses and readouts take the unrounded weights.
        vec.softmax_f32(soft, s, kBlockKeys);
        for (int r = 0; r < t.rows; r++)
          vec.from_f32(p_.data() + r * kBlockKeys, Type::bf16, s + r * kBlockKeys, round_up(n, kPanel), 1.f);
        p = p_.data();
      } else {
        vec.softmax_bf16(soft, p_.data(), kBlockKeys);
        p = p_.data();
      }
      const int64_t panel = x.s_padded_ * kPanel;
      x.engine_.gemm.run(t.rows, static_cast<int>(a.D), static_cast<int>(n), p, kBlockKeys,
                         x.values_.data() + slot * x.values_size_ + n0 * kPanel, panel, acc_.data(), ld_, true);
      if (x.columns_ > 0) features(t, slot, n0, n);
      if (by_runs()) masses(t, n0, n);
    }

    void features(const Tile& t, int64_t slot, int64_t n0, int64_t n) {
      const int64_t heads = x.feature_heads_, stride = heads == 1 ? 1 : a.group();
      for (int64_t g = 0; g < heads; g++) {
        // Rows of the tile that belong to head g of the group: every group-th, unless one table serves all heads.
        const int64_t r = heads == 1 ? 0 : (g - t.r0 % stride + stride) % stride;
        if (r >= t.rows) continue;
        gemm_f32().run(static_cast<int>((t.rows - r + stride - 1) / stride), static_cast<int>(x.columns_),
                       static_cast<int>(n), s_.data() + r * kBlockKeys, stride * kBlockKeys,
                       x.features_.data() + (slot * heads + g) * x.features_size() + n0 * kPanel, x.s_padded_ * kPanel,
                       acc_.data() + r * ld_ + n_padded(a.D), stride * ld_, true);
      }
    }

    void masses(const Tile& t, int64_t n0, int64_t n) {
      const Runs& runs = x.runs_[a.segments_batch == 0 ? 0 : t.b];
      float* mass = acc_.data() + n_padded(a.D) + n_padded(x.columns_);
      for (size_t i = runs.first[n0 / kBlockKeys]; i < runs.runs.size() && runs.runs[i].begin < n0 + n; i++) {
        const int64_t begin = std::max(runs.runs[i].begin - n0, int64_t{0}), end = std::min(runs.runs[i].end - n0, n);
        float* out = mass + runs.runs[i].label;
        for (int r = 0; r < t.rows; r++) out[r * ld_] += range_sum(s_.data() + r * kBlockKeys + begin, end - begin);
      }
    }

    void finish(const Tile& t) {
      const int64_t group = a.group(), K = a.topk, G = a.segments != nullptr ? a.n_segments : 0;
      const int64_t size = a.type == Type::f32 ? 4 : 2;
      for (int r = 0; r < t.rows; r++) {
        const int64_t i = (t.r0 + r) / group, h = t.hk * group + (t.r0 + r) % group;
        const int64_t row = (t.b * a.H + h) * a.T + i;
        const float* acc = acc_.data() + r * ld_;
        const bool seen = l_[r] != 0;
        const double log_l = std::log(static_cast<double>(l_[r]));
        const Normaliser whole = joined(seen ? static_cast<double>(m_[r]) * a.unit() + log_l : -kInf, a.sinks, h);
        const float alone = seen ? 1 / l_[r] : 0, inv = alone * static_cast<float>(whole.share);
        x.engine_.vec.from_f32(static_cast<char*>(a.z) + row * a.D * size, a.type, acc, a.D, inv);
        a.lse[row] = static_cast<float>(whole.lse);
        a.pmax[row] = inv;
        // Weights w p of a softmax p, w the keys' share: -sum w p ln (w p) = w (entropy of p - ln w).
        if (a.entropy != nullptr)
          a.entropy[row] = seen ? static_cast<float>(whole.share * (log_l - u_[r] * alone + whole.rise)) : 0;
        const float* read = acc + n_padded(a.D);
        for (int64_t c = 0; c < a.C; c++) a.read[row * a.C + c] = read[c] * inv;
        const float* mass = x.onehot_ ? read + a.C : read + n_padded(x.columns_);
        for (int64_t g = 0; g < G; g++) a.mass[row * G + g] = mass[g] * inv;
        for (int64_t j = 0; j < K; j++) {
          const bool used = top_i_[r][j] >= 0;
          a.topk_p[row * K + j] = used ? std::exp((top_s_[r][j] - m_[r]) * a.unit()) * inv : 0;
          a.topk_i[row * K + j] = top_i_[r][j];
        }
      }
    }

    Extractor& x;
    const TopkOps& topk_ = topk_ops();
    const ExtractArgs& a;
    GemmScope<E> scope_;
    GemmScope<float> scope_f32_;
    int64_t ld_;
    Scratch<E> q_, p_;
    Scratch<float> s_, acc_, rows_;
    float m_[kTileRows], l_[kTileRows], u_[kTileRows];
    int from_[kTileRows], to_[kTileRows];
    float top_s_[kTileRows][kInlineTopk];
    int32_t top_i_[kTileRows][kInlineTopk];
  };

  const ExtractArgs& a;
  const int workers_;
  const Parallel& parallel_;
  const Engine<E> engine_{};
  const int64_t d_padded_ = engine_.gemm.k_padded(a.D), s_padded_ = round_up(a.S, kPanel);
  const int64_t keys_size_ = packed_keys_size(a, d_padded_), values_size_ = round_up(a.D, kPanel) * s_padded_;
  std::vector<Runs> runs_;
  bool onehot_ = false;        // segments too scattered for runs: their indicators are further columns of the readout
  int64_t columns_ = 0;        // of the readout, indicators included
  int64_t feature_heads_ = 0;  // packed readouts of a pair: 0, 1 or one for each query head
  Scratch<E> keys_, values_;
  Scratch<float> features_;
};

}  // namespace

void extract(const ExtractArgs& args, int workers, const Parallel& parallel) {
  with_types(args.type, [&]<class E, class Src>() { Extractor<E, Src>(args, workers, parallel).run(); });
}

}  // namespace pcm
