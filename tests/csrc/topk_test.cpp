// The K largest of a stream: order of the ranks, the network with any number of lanes, the scans of every level.
#include <algorithm>
#include <numeric>

#include "check.h"
#include "core/topk_rows.h"

using namespace pcm;

namespace {

// Keys by descending score, ties to the lowest: the definition.
std::vector<int> ranked(const std::vector<float>& s, int from, int to) {
  std::vector<int> keys;
  for (int j = from; j < to; j++)
    if (s[j] > -kInf) keys.push_back(j);  // also drops NaN
  std::stable_sort(keys.begin(), keys.end(), [&](int a, int b) { return s[a] > s[b]; });
  return keys;
}

std::vector<float> scores(Random& random, int n, int kind) {
  std::vector<float> s(n);
  for (float& x : s) x = random.uniform();
  if (kind == 1)
    for (float& x : s) x = std::floor(x * 3);  // many equal, zeros of both signs
  if (kind == 2) std::sort(s.begin(), s.end());  // every score beats all before it
  if (kind == 3)
    for (int j = 0; j < n; j++) s[j] = random.next() % 5 == 0 ? kNan : random.next() % 7 == 0 ? -kInf : s[j];
  if (kind == 4) std::fill(s.begin(), s.end(), 0.25f);
  return s;
}

void ranks() {
  const float s[] = {-std::numeric_limits<float>::max(), -2, -1e-40f, 0, 1e-40f, 1, std::numeric_limits<float>::max()};
  for (int a = 0; a < 7; a++)
    for (int b = 0; b < 7; b++)
      for (int i : {0, 5, 2147483647})
        for (int j : {0, 5, 2147483647}) {
          const bool before = s[a] > s[b] || (s[a] == s[b] && i < j);
          CHECK((rank_of(s[a], i) > rank_of(s[b], j)) == before, "%g %d against %g %d", s[a], i, s[b], j);
        }
  CHECK(rank_of(-0.f, 3) == rank_of(0.f, 3), "zeros differ");
  CHECK(rank_of(-kInf, 2147483647) > 0 && rank_key(0) == -1, "an empty slot is last, its key -1");
  CHECK(rank_score(rank_of(-1.5f, 9)) == -1.5f && rank_key(rank_of(-1.5f, 9)) == 9, "round trip");
}

// The lanes of a warp, one after another within each step, as barriers would have them: they touch disjoint slots, so
// any order gives what the device gives. The steps are those of topk_merge with one lane.
void lanes(Random& random) {
  for (int n : {8, 16, 32, 64})
    for (int lane_count : {1, 4, 32})
      for (int size = 2; size <= n; size *= 2)
        for (int stride = size / 2; stride > 0; stride /= 2) {
          std::vector<uint64_t> whole(n), parts(n);
          for (int i = 0; i < n; i++) whole[i] = parts[i] = random.next();
          bitonic_step(whole.data(), n, size, stride, 0, 1);
          for (int lane = lane_count - 1; lane >= 0; lane--)
            bitonic_step(parts.data(), n, size, stride, lane, lane_count);
          CHECK(std::equal(whole.data(), whole.data() + n, parts.data()), "n %d lanes %d", n, lane_count);
        }
}

void merges(Random& random) {
  for (int n : {8, 16, 32, 64})
    for (int trial = 0; trial < 200; trial++) {
      std::vector<uint64_t> list(n), buffer(n);
      std::vector<uint64_t> all;
      const int filled = random.next() % (n + 1), waiting = random.next() % (n + 1);
      for (int i = 0; i < n; i++) list[i] = i < filled ? random.next() % 50 + 1 : 0;
      std::sort(list.data(), list.data() + n, std::greater<>());
      for (int i = 0; i < n; i++) buffer[i] = i < waiting ? random.next() % 50 + 1 : 0;
      all.insert(all.end(), list.data(), list.data() + n);
      all.insert(all.end(), buffer.data(), buffer.data() + n);
      std::sort(all.begin(), all.end(), std::greater<>());
      int barriers = 0;
      topk_merge(list.data(), buffer.data(), n, 0, 1, [&] { barriers++; });
      CHECK(std::equal(list.data(), list.data() + n, all.begin()), "n %d trial %d", n, trial);
      CHECK(barriers > 0, "no barrier");
    }
}

void streams(Random& random, Isa level) {
  const TopkOps& ops = topk_ops(level);
  for (int kind = 0; kind < 5; kind++)
    for (int n : {1, 15, 16, 17, 63, 128, 300, 1000})
      for (int k : {1, 2, 4, 7, 8, 9, 16, 17, 31, 32, 64}) {
        const std::vector<float> s = scores(random, n, kind);
        const int from = static_cast<int>(random.next() % (n / 3 + 1));
        const int to = n - static_cast<int>(random.next() % (n / 3 + 1));
        const std::vector<int> want = ranked(s, from, to);
        const auto check = [&](int slot, int key, float score, const char* what) {
          if (slot < static_cast<int>(want.size()))
            CHECK(key == want[slot] && score == s[key], "%s kind %d n %d k %d slot %d: %d, not %d", what, kind, n, k,
                  slot, key, want[slot]);
          else
            CHECK(key == -1, "%s kind %d n %d k %d slot %d: %d in an unused slot", what, kind, n, k, slot, key);
        };
        // In blocks of 128 that begin anywhere, from heap blocks of exact size.
        TopkRow row;
        row.reset(k);
        float list[kInlineTopk];
        int32_t keys[kInlineTopk];
        std::fill_n(list, kInlineTopk, -kInf);
        std::fill_n(keys, kInlineTopk, -1);
        for (int n0 = 0; n0 < n; n0 += 128) {
          const int width = std::min(128, n - n0);
          const int a = std::clamp(from - n0, 0, width), b = std::clamp(to - n0, 0, width);
          Exact<float> block(width);
          std::copy_n(s.data() + n0, width, block.data());
          std::vector<int32_t> columns(std::max(b - a, 0) + 15);
          row.scan(block.data(), a, b, n0, columns.data(), ops);
          if (k <= kInlineTopk) ops.insert(block.data(), a, b, n0, list, keys, k);
        }
        row.merge();
        for (int slot = 0; slot < k; slot++) {
          const uint64_t rank = row.list[slot];
          check(slot, rank_key(rank), rank == 0 ? 0 : rank_score(rank), "stream");
          if (k <= kInlineTopk) check(slot, keys[slot], list[slot], "list");
        }
      }
}

}  // namespace

int main() {
  Random random;
  ranks();
  lanes(random);
  merges(random);
  for (int level = 0; level <= static_cast<int>(isa()); level++) {
    streams(random, static_cast<Isa>(level));
    std::puts(isa_name(static_cast<Isa>(level)));
  }
}
