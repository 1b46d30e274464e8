// The CUDA kernel of the top keys, run on the host: a block's threads are fibres that run from barrier to barrier, in
// ascending or in descending order, so that a missing barrier or a race changes a result between the two.
#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <functional>

#include "check.h"

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define PCM_SHARED(name) unsigned char* name = shared_memory

namespace {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};
Index threadIdx, blockIdx, gridDim;
unsigned char* shared_memory;

struct Fibre {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(256 * 1024);
  int block_barriers = 0, warp_barriers = 0;
  bool vote[2] = {};
  bool done = false;
};

std::vector<Fibre>* fibres;
ucontext_t scheduler;
std::function<void()> kernel;

Fibre& me() { return (*fibres)[threadIdx.x]; }

template <class Passed>
void wait_for(unsigned from, unsigned to, Passed passed) {
  const unsigned self = threadIdx.x;
  for (unsigned i = from; i < to; i++)
    while (!(*fibres)[i].done && !passed((*fibres)[i])) {
      swapcontext(&(*fibres)[self].context, &scheduler);
    }
}

void __syncthreads() {
  const int count = ++me().block_barriers;
  wait_for(0, static_cast<unsigned>(fibres->size()), [=](Fibre& f) { return f.block_barriers >= count; });
}

void __syncwarp() {
  const int count = ++me().warp_barriers;
  const unsigned warp = threadIdx.x / 32 * 32;
  wait_for(warp, warp + 32, [=](Fibre& f) { return f.warp_barriers >= count; });
}

unsigned __ballot_sync(unsigned, bool vote) {
  // Two places in turn: a lane is at most one barrier ahead of another.
  const int place = me().warp_barriers % 2;
  me().vote[place] = vote;
  __syncwarp();
  unsigned votes = 0;
  const unsigned warp = threadIdx.x / 32 * 32;
  for (unsigned i = 0; i < 32; i++) votes |= static_cast<unsigned>((*fibres)[warp + i].vote[place]) << i;
  return votes;
}

int __popc(unsigned x) { return std::popcount(x); }
int __ffs(unsigned x) { return x == 0 ? 0 : std::countr_zero(x) + 1; }
struct float4 {
  float x, y, z, w;
};
using std::max;
using std::min;

void enter();

__attribute__((noinline)) void prepare(Fibre& f) {
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = f.stack.data();
  f.context.uc_stack.ss_size = f.stack.size();
  f.context.uc_link = nullptr;
  makecontext(&f.context, enter, 0);
}

void enter() {
  kernel();
  me().done = true;
  swapcontext(&me().context, &scheduler);
}

}  // namespace

namespace pcm {
float widen(float x) { return x; }
float widen(bf16 x) { return to_float(x); }
}  // namespace pcm

#include "cuda/topk_kernel.h"

namespace {

using namespace pcm;

template <class T>
void run(const TopkLaunch& a, unsigned batches, bool descending) {
  gridDim = {static_cast<unsigned>((a.T + kRows - 1) / kRows), static_cast<unsigned>(a.H), batches};
  for (unsigned z = 0; z < gridDim.z; z++)
    for (unsigned y = 0; y < gridDim.y; y++)
      for (unsigned x = 0; x < gridDim.x; x++) {
        blockIdx = {x, y, z};
        std::vector<double> memory((topk_shared(a.D) + 7) / 8, kNan);  // exact size, fresh for each block
        shared_memory = reinterpret_cast<unsigned char*>(memory.data());
        kernel = [&] { topk_kernel<T>(a); };
        std::vector<Fibre> threads(kThreads);
        fibres = &threads;
        for (Fibre& f : threads) prepare(f);
        for (bool alive = true; alive;) {
          alive = false;
          for (int i = 0; i < kThreads; i++) {
            threadIdx.x = static_cast<unsigned>(descending ? kThreads - 1 - i : i);
            if (me().done) continue;
            alive = true;
            swapcontext(&scheduler, &me().context);
          }
        }
      }
}

struct Shape {
  int B, H, Hkv, T, S, D, topk, window;
  float softcap, scale;
  bool ties;
};

template <class T>
void check(const Shape& c) {
  Random random;
  Exact<T> q(c.B * c.H * c.T * c.D), k(c.B * c.Hkv * c.S * c.D);
  for (auto* x : {&q, &k})
    for (int64_t i = 0; i < x->n; i++)
      from_float(c.ties ? static_cast<float>(static_cast<int>(random.next() % 3) - 1) : random.uniform(), &(*x)[i]);
  std::vector<int32_t> starts(c.B);
  for (int b = 0; b < c.B; b++) starts[b] = b * (c.S - c.T + 3);
  Exact<float> lse(c.B * c.H * c.T), p(c.B * c.H * c.T * c.topk), p2(p.n);
  std::vector<int32_t> keys(p.n, -7), keys2(p.n, -7);
  for (int64_t i = 0; i < lse.n; i++) lse[i] = random.uniform();
  TopkLaunch a = {};
  a.q = q.data(), a.k = k.data(), a.lse = lse.data(), a.starts = c.B > 1 ? starts.data() : nullptr;
  a.q_batch = c.H * c.T * c.D, a.q_head = c.T * c.D, a.q_row = c.D;
  a.k_batch = c.Hkv * c.S * c.D, a.k_head = c.S * c.D, a.k_row = c.D;
  a.lse_batch = c.H * c.T, a.lse_head = c.T, a.lse_row = 1;
  a.H = c.H, a.group = c.H / c.Hkv, a.T = c.T, a.S = c.S, a.D = c.D, a.topk = c.topk, a.window = c.window;
  a.sign = c.scale < 0 ? -1.f : 1.f, a.scale = std::fabs(c.scale), a.softcap = c.softcap;
  a.unit = c.softcap > 0 ? 1.f : a.scale;
  a.p = p.data(), a.i = keys.data();
  run<T>(a, c.B, false);
  a.p = p2.data(), a.i = keys2.data();
  run<T>(a, c.B, true);
  CHECK(keys == keys2 && std::equal(p.data(), p.data() + p.n, p2.data()), "the order of the threads shows");
  for (int row = 0; row < c.B * c.H * c.T; row++) {
    const int b = row / (c.H * c.T), h = row / c.T % c.H, i = row % c.T, at = i + c.S - c.T;
    int first = a.starts != nullptr ? starts[b] : 0;
    if (c.window > 0) first = std::max(first, at + 1 - c.window);
    std::vector<double> s(c.S, 0.);
    std::vector<int> want;
    for (int j = first; j <= at; j++) {
      for (int d = 0; d < c.D; d++)
        s[j] += static_cast<double>(q.at((static_cast<int64_t>(b * c.H + h) * c.T + i) * c.D + d)) *
                k.at((static_cast<int64_t>(b * c.Hkv + h / a.group) * c.S + j) * c.D + d);
      s[j] *= c.scale;
      if (c.softcap > 0) s[j] = c.softcap * std::tanh(s[j] / c.softcap);
      want.push_back(j);
    }
    std::stable_sort(want.begin(), want.end(), [&](int x, int y) { return s[x] > s[y]; });
    for (int slot = 0; slot < c.topk; slot++) {
      const int32_t key = keys[row * c.topk + slot];
      const float got = p[row * c.topk + slot];
      if (slot >= static_cast<int>(want.size())) {
        CHECK(key == -1 && got == 0, "row %d slot %d: %d, %g in an unused slot", row, slot, key, got);
        continue;
      }
      CHECK(key >= first && key <= at, "row %d slot %d: key %d is not visible", row, slot, key);
      CHECK(key == want[slot] || (!c.ties && std::fabs(s[key] - s[want[slot]]) < 1e-5), "row %d slot %d: %d, not %d",
            row, slot, key, want[slot]);
      const double weight = std::exp(s[want[slot]] - lse[row]);
      CHECK(std::fabs(got - weight) < 1e-5 * weight, "row %d slot %d: %g, not %g", row, slot, got, weight);
    }
  }
}

}  // namespace

int main() {
  check<float>({1, 2, 1, 35, 150, 33, 9, 0, 0.f, -0.5f, false});
  check<bf16>({2, 1, 1, 40, 90, 64, 64, 0, 0.f, 0.3f, false});
  check<float>({2, 2, 2, 20, 130, 80, 17, 25, 3.f, 0.4f, false});
  check<float>({1, 1, 1, 3, 200, 16, 33, 0, 0.f, 1.f, true});
  std::puts("ok");
}
