// An attention sink: a logit of a head's own that takes part of the softmax and has no value. Torch-free.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

namespace pcm {

struct Normaliser {
  double lse;    // log of the sum of exponentials, natural logarithm
  double rise;   // by how much the sink raised it
  double share;  // what the keys keep of their weights, exp(-rise)
};

// A row's normaliser over its keys (-inf where it sees none), joined by its head's sink; sinks may be null.
inline Normaliser joined(double lse, const float* sinks, int64_t head) {
  if (sinks == nullptr) return {lse, 0, 1};
  const double sink = sinks[head];
  if (lse == -std::numeric_limits<double>::infinity()) return {sink, 0, 1};
  const double above = sink - lse, rise = std::log1p(std::exp(-std::abs(above))) + (above > 0 ? above : 0);
  return {lse + rise, rise, std::exp(-rise)};
}

}  // namespace pcm
