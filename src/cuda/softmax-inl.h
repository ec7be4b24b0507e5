// Scores to weights, in units of log2(e): what all kernels do alike.
#pragma once

#include "cuda/ranges-inl.h"

namespace kvshare::cuda {

// A dot product as a score in units of log2(e), bias not yet added.
struct ScoreScale {
  float factor;
  float cap;  // 0: none

  GPU_FN explicit ScoreScale(const DeviceAttention& call)
      : factor(call.softcap > 0 ? call.scale / call.softcap : call.scale * kLog2E),
        cap(call.softcap > 0 ? call.softcap * kLog2E : 0) {}
  GPU_FN float operator()(float dot) const { return cap > 0 ? cap * gpu::Tanh(dot * factor) : dot * factor; }
};

// The number to subtract before Exp2: the maximum; 0 for a row that has seen nothing, where -inf - -inf would be NaN.
GPU_FN float BaseOf(float maximum) { return maximum == -gpu::Infinity() ? 0.0F : maximum; }

// The factor of a row's weighted sum, `sum` of whose weights are relative to `maximum`: 1 / sum, where a smooth softmax
// adds its key. 0 where the row has seen nothing.
GPU_FN float OutputFactor(const DeviceAttention& call, int head, float maximum, float sum) {
  if (!call.has_sink) return sum == 0 ? 0.0F : 1.0F / sum;
  const float sink = SinkScore(call, head) * kLog2E;
  const float base = BaseOf(gpu::Max(maximum, sink));
  const float fade = gpu::Exp2(maximum - base);
  const float whole = sum * fade + gpu::Exp2(sink - base);
  return whole == 0 ? 0.0F : fade / whole;
}

}  // namespace kvshare::cuda
