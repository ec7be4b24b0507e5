// Per-target: one head's row as f32, normalized where there are weights, rotated where there are tables.
#if defined(KVSHARE_ATTENTION_ROTARY_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSHARE_ATTENTION_ROTARY_INL_H_
#undef KVSHARE_ATTENTION_ROTARY_INL_H_
#else
#define KVSHARE_ATTENTION_ROTARY_INL_H_
#endif

#include <algorithm>
#include <cmath>

#include "attention/load-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvshare::HWY_NAMESPACE {

inline void RotateHalves(float* row, const RotaryView& rotary, int64_t position) {
  for (int64_t i = 0; i < rotary.half; i += kLanes) {
    const size_t n = std::min<int64_t>(kLanes, rotary.half - i);
    const Vec cos = LoadAny(rotary.cos, rotary.type, position * rotary.half + i, n);
    const Vec sin = LoadAny(rotary.sin, rotary.type, position * rotary.half + i, n);
    const Vec a = LoadN(row + i, n);
    const Vec b = LoadN(row + rotary.half + i, n);
    StoreN(hn::NegMulAdd(b, sin, hn::Mul(a, cos)), row + i, n);
    StoreN(hn::MulAdd(a, sin, hn::Mul(b, cos)), row + rotary.half + i, n);
  }
}

inline void RotatePairs(float* row, const RotaryView& rotary, int64_t position) {
  const F32 df;
  HWY_ALIGN float cos[kLanes];
  HWY_ALIGN float sin[kLanes];
  for (int64_t i = 0; i < rotary.half; i += kLanes) {
    const size_t n = std::min<int64_t>(kLanes, rotary.half - i);
    hn::Store(LoadAny(rotary.cos, rotary.type, position * rotary.half + i, n), df, cos);
    hn::Store(LoadAny(rotary.sin, rotary.type, position * rotary.half + i, n), df, sin);
    for (size_t k = 0; k < n; ++k) {
      float* pair = row + 2 * (i + k);
      const float a = pair[0];
      const float b = pair[1];
      pair[0] = a * cos[k] - b * sin[k];
      pair[1] = b * cos[k] + a * sin[k];
    }
  }
}

inline void Normalize(float* row, int64_t head_size, const NormView& norm) {
  const F32 df;
  Vec squares = hn::Zero(df);
  for (int64_t d = 0; d < head_size; d += kLanes) {
    const Vec x = hn::LoadU(df, row + d);
    squares = hn::MulAdd(x, x, squares);
  }
  const float mean = hn::ReduceSum(df, squares) / static_cast<float>(head_size);
  const Vec factor = hn::Set(df, 1.0F / std::sqrt(mean + norm.epsilon));
  for (int64_t d = 0; d < head_size; d += kLanes) {
    const Vec weight = LoadAny(norm.weight, norm.type, d, std::min<int64_t>(kLanes, head_size - d));
    hn::StoreU(hn::Mul(hn::Mul(hn::LoadU(df, row + d), factor), weight), df, row + d);
  }
}

// row: room for head_size rounded up to kLanes; zero beyond head_size.
inline void LoadRow(const HeadsView& view, int64_t b, int64_t head, int64_t token, const NormView& norm,
                    const RotaryView& rotary, int64_t position, float* row) {
  LoadElements(view.data, view.type, view.Offset(b, head, token), view.head_size, row);
  if (norm) Normalize(row, view.head_size, norm);
  if (!rotary) return;
  if (rotary.interleaved)
    RotatePairs(row, rotary, position);
  else
    RotateHalves(row, rotary, position);
}

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
