// The tile instructions that csrc/core/gemm_amx.cpp uses, in software: for tests on processors without AMX.
// What the hardware would fault on aborts here: a tile used before its configuration, a bad configuration, shapes that
// do not fit.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace amx_emulation {

struct State {
  bool configured = false;
  int rows[8], bytes[8];
  unsigned char data[8][16][64];
};

inline State& state() {
  static thread_local State s;
  return s;
}

inline void require(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "AMX emulation: %s\n", what);
  std::abort();
}

inline void load_config(const void* from) {
  unsigned char c[64];
  std::memcpy(c, from, 64);
  require(c[0] == 1, "palette must be 1");
  for (int i = 1; i < 16; i++) require(c[i] == 0, "start row and reserved bytes must be 0");
  State& s = state();
  for (int t = 0; t < 16; t++) {
    uint16_t bytes;
    std::memcpy(&bytes, c + 16 + 2 * t, 2);
    const int rows = c[48 + t];
    if (t >= 8) {
      require(bytes == 0 && rows == 0, "only 8 tiles");
      continue;
    }
    require(bytes <= 64 && rows <= 16, "tile too large");
    s.bytes[t] = bytes;
    s.rows[t] = rows;
  }
  std::memset(s.data, 0, sizeof s.data);
  s.configured = true;
}

inline void load(int t, const void* base, int64_t stride) {
  State& s = state();
  require(s.configured, "tile load before the configuration");
  for (int r = 0; r < s.rows[t]; r++)
    std::memcpy(s.data[t][r], static_cast<const char*>(base) + r * stride, s.bytes[t]);
}

inline void store(int t, void* base, int64_t stride) {
  State& s = state();
  require(s.configured, "tile store before the configuration");
  for (int r = 0; r < s.rows[t]; r++) std::memcpy(static_cast<char*>(base) + r * stride, s.data[t][r], s.bytes[t]);
}

inline void zero(int t) {
  require(state().configured, "tile zero before the configuration");
  std::memset(state().data[t], 0, sizeof state().data[t]);
}

inline float widen(const unsigned char* p) {
  uint16_t h;
  std::memcpy(&h, p, 2);
  const uint32_t u = static_cast<uint32_t>(h) << 16;
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

inline void dpbf16(int c, int a, int b) {
  State& s = state();
  require(s.configured, "tile product before the configuration");
  require(s.rows[c] == s.rows[a] && s.bytes[a] / 4 == s.rows[b] && s.bytes[c] == s.bytes[b], "shapes do not fit");
  for (int m = 0; m < s.rows[c]; m++)
    for (int n = 0; n < s.bytes[c] / 4; n++) {
      float acc;
      std::memcpy(&acc, s.data[c][m] + 4 * n, 4);
      for (int k = 0; k < s.bytes[a] / 4; k++)
        for (int pair = 0; pair < 2; pair++)
          acc += widen(s.data[a][m] + 4 * k + 2 * pair) * widen(s.data[b][k] + 4 * n + 2 * pair);
      std::memcpy(s.data[c][m] + 4 * n, &acc, 4);
    }
}

}  // namespace amx_emulation

#define _tile_loadconfig(p) amx_emulation::load_config(p)
#define _tile_release() (amx_emulation::state().configured = false)
#define _tile_loadd(t, p, stride) amx_emulation::load(t, p, stride)
#define _tile_stored(t, p, stride) amx_emulation::store(t, p, stride)
#define _tile_zero(t) amx_emulation::zero(t)
#define _tile_dpbf16ps(c, a, b) amx_emulation::dpbf16(c, a, b)
