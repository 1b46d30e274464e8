// The attention core, torch-free, against loops in double: results, exact bounds of every input, threads.
#include <algorithm>
#include <thread>

#include "check.h"
#include "core/attn_weights.h"
#include "core/extract.h"

using namespace pcm;

namespace {

constexpr int64_t B = 2, H = 6, Hkv = 2, T = 67, S = 141, G = 3, C = 2;
constexpr int K = 4, E = 200;

void run_on(int threads, const std::function<void()>& body) {
  std::vector<std::thread> pool;
  for (int i = 1; i < threads; i++) pool.emplace_back(body);
  body();
  for (std::thread& t : pool) t.join();
}

// Everything a call takes and gives, in heap blocks of exact size.
template <class Src>
struct Data {
  int64_t D;
  Exact<Src> q, k, v;
  Exact<float> readout, sinks, weights, lse, pmax, entropy, mass, read, top_p, colsum, rows_p, entries_p, top16_p;
  Exact<Src> z;
  std::vector<int32_t> segments, starts, top_i, top16_i;
  std::vector<int64_t> rows, qi, ki;

  Data(int64_t D, Random& random, bool scattered)
      : D(D), q(B * H * T * D), k(B * Hkv * S * D), v(B * Hkv * S * D), readout(H * S * C), sinks(H), weights(T), lse(B * H * T),
        pmax(B * H * T), entropy(B * H * T), mass(B * H * T * G), read(B * H * T * C), top_p(B * H * T * K),
        colsum(B * H * S), rows_p(B * H * 3 * S), entries_p(B * H * E), top16_p(B * H * T * 16), z(B * H * T * D),
        segments(S), starts(B), top_i(B * H * T * K), top16_i(B * H * T * 16), rows(3), qi(E), ki(E) {
    for (auto* x : {&q, &k, &v})
      for (int64_t i = 0; i < x->n; i++) from_float(random.uniform(), &(*x)[i]);
    for (int64_t i = 0; i < readout.n; i++) readout[i] = random.uniform();
    for (int64_t i = 0; i < T; i++) weights[i] = random.uniform();
    for (int64_t h = 0; h < H; h++) sinks[h] = 2.f * random.uniform() + h;
    for (int64_t j = 0; j < S; j++)
      segments[j] = scattered ? static_cast<int32_t>(random.next() % 5) - 1 : static_cast<int32_t>(j / 40) - 1;
    starts[0] = 3, starts[1] = 130;  // in the second sequence the first rows see no key
    rows[0] = 66, rows[1] = 0, rows[2] = 31;
    for (int64_t e = 0; e < E; e++) qi[e] = random.next() % T, ki[e] = random.next() % S;
  }

  void fill(Attn& a) {
    a.type = type_of<Src>();
    a.B = B, a.H = H, a.Hkv = Hkv, a.T = T, a.S = S, a.D = D;
    a.q = {q.data(), H * T * D, T * D, D};
    a.k = {k.data(), Hkv * S * D, S * D, D};
    a.starts = starts.data();
    a.scale = -0.3f, a.window = 90, a.softcap = 3;
  }

  void run(int threads) {
    const Parallel parallel = [&](const std::function<void()>& body) { run_on(threads, body); };
    ExtractArgs x;
    fill(x);
    x.v = {v.data(), Hkv * S * D, S * D, D};
    x.segments = segments.data(), x.n_segments = G;
    x.readout = readout.data(), x.readout_head = S * C, x.readout_key = C, x.C = C;
    x.topk = K;
    x.sinks = sinks.data();
    x.z = z.data(), x.lse = lse.data(), x.pmax = pmax.data(), x.entropy = entropy.data(), x.mass = mass.data();
    x.read = read.data(), x.topk_p = top_p.data(), x.topk_i = top_i.data();
    extract(x, threads, parallel);
    const auto second = [&](auto args) {
      fill(args);
      args.lse = lse.data(), args.lse_batch = H * T, args.lse_head = T, args.lse_row = 1;
      return args;
    };
    auto c = second(ColsumArgs{});
    c.weights = weights.data(), c.weights_row = 1, c.out = colsum.data();
    column_sums(c, threads, parallel);
    auto r = second(RowsArgs{});
    r.rows = rows.data(), r.R = 3, r.out = rows_p.data();
    pattern_rows(r, threads, parallel);
    auto e = second(EntriesArgs{});
    e.qi = qi.data(), e.ki = ki.data(), e.E = E, e.out = entries_p.data();
    pattern_entries(e, threads, parallel);
    auto t = second(TopkArgs{});
    t.topk = 16, t.p = top16_p.data(), t.i = top16_i.data();
    top_keys(t, threads, parallel);
  }

  // All results as bits, for comparison between thread counts.
  std::vector<float> results() {
    std::vector<float> out;
    for (auto* x : {&lse, &pmax, &entropy, &mass, &read, &top_p, &colsum, &rows_p, &entries_p, &top16_p})
      out.insert(out.end(), x->data(), x->data() + x->n);
    for (int64_t i = 0; i < z.n; i++) out.push_back(z.at(i));
    for (auto* x : {&top_i, &top16_i}) out.insert(out.end(), x->begin(), x->end());
    return out;
  }

  double score(int64_t b, int64_t h, int64_t i, int64_t j) const {
    double s = 0;
    for (int64_t d = 0; d < D; d++)
      s += static_cast<double>(q.at(((b * H + h) * T + i) * D + d)) * k.at(((b * Hkv + h / (H / Hkv)) * S + j) * D + d);
    return 3 * std::tanh(s * -0.3 / 3);
  }

  void verify() {
    // z of 16-bit types: the rounding of the weights and of the result.
    const double tight = 3e-6, loose = sizeof(Src) == 4 ? 3e-6 : type_of<Src>() == Type::bf16 ? 1e-2 : 1e-3;
    std::vector<double> sums(B * H * S, 0.);
    for (int64_t b = 0; b < B; b++)
      for (int64_t h = 0; h < H; h++)
        for (int64_t i = 0; i < T; i++) {
          const int64_t row = (b * H + h) * T + i, at = i + S - T;
          const int64_t first = std::max<int64_t>(starts[b], at + 1 - 90);
          std::vector<double> p(S, 0.), z_want(D, 0.), mass_want(G, 0.), read_want(C, 0.);
          double total = 0, entropy_want = 0, top = 0;
          for (int64_t j = first; j <= at; j++) total += p[j] = std::exp(score(b, h, i, j));
          total += std::exp(static_cast<double>(sinks[h]));
          for (int64_t j = first; j <= at; j++) {
            p[j] /= total;
            entropy_want -= p[j] * std::log(p[j]);
            top = std::max(top, p[j]);
            for (int64_t d = 0; d < D; d++) z_want[d] += p[j] * v.at(((b * Hkv + h / (H / Hkv)) * S + j) * D + d);
            if (segments[j] >= 0 && segments[j] < G) mass_want[segments[j]] += p[j];
            for (int64_t c = 0; c < C; c++) read_want[c] += p[j] * readout[(h * S + j) * C + c];
            sums[(b * H + h) * S + j] += p[j] * weights[i];
          }
          const auto near = [&](double got, double want, double bound, const char* what) {
            CHECK(std::abs(got - want) <= bound, "%s of row %d: %g, not %g", what, (int)row, got, want);
          };
          if (first > at)
            CHECK(lse[row] == sinks[h] && pmax[row] == 0 && entropy[row] == 0, "a row without keys");
          else
            near(lse[row], std::log(total), tight, "lse");
          near(pmax[row], top, tight, "pmax");
          near(entropy[row], entropy_want, 2 * tight, "entropy");
          for (int64_t d = 0; d < D; d++) near(z.at(row * D + d), z_want[d], loose, "z");
          for (int64_t g = 0; g < G; g++) near(mass[row * G + g], mass_want[g], tight, "mass");
          for (int64_t c = 0; c < C; c++) near(read[row * C + c], read_want[c], tight, "read");
          std::vector<double> sorted = p;
          std::sort(sorted.begin(), sorted.end(), std::greater<>());
          const auto tops = [&](Exact<float>& values, std::vector<int32_t>& keys, int n) {
            for (int slot = 0; slot < n; slot++) {
              const int32_t key = keys[row * n + slot];
              near(values[row * n + slot], sorted[slot], tight, "top weight");
              CHECK((key >= 0) == (slot < at - first + 1), "slot %d of %d holds key %d", slot, n, key);
              if (key >= 0) near(p[key], sorted[slot], tight, "weight of the top key");
            }
          };
          tops(top_p, top_i, K);
          tops(top16_p, top16_i, 16);
          for (int64_t r = 0; r < 3; r++)
            for (int64_t j = 0; rows[r] == i && j < S; j++)
              near(rows_p[((b * H + h) * 3 + r) * S + j], p[j], tight, "rows");
          for (int64_t e = 0; e < E; e++)
            if (qi[e] == i) near(entries_p[(b * H + h) * E + e], p[ki[e]], tight, "entry");
        }
    for (int64_t j = 0; j < B * H * S; j++)
      CHECK(std::abs(colsum[j] - sums[j]) < 10 * tight, "column sum %d: %g, not %g", (int)j, colsum[j], sums[j]);
  }
};

template <class Src>
void all(int64_t D, bool scattered) {
  Random random;
  Data<Src> data(D, random, scattered);
  data.run(1);
  data.verify();
  const std::vector<float> one = data.results();
  data.run(3);
  CHECK(one == data.results(), "three threads give other bits than one");
}

}  // namespace

int main() {
  all<float>(80, false);
  all<float>(33, true);
  all<bf16>(64, true);
  all<bf16>(80, false);
  all<f16>(32, false);
  std::puts(isa_name(isa()));
}
