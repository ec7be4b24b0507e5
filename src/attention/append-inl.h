// Per-target: one stretch of a cache append.
#if defined(KVSHARE_ATTENTION_APPEND_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSHARE_ATTENTION_APPEND_INL_H_
#undef KVSHARE_ATTENTION_APPEND_INL_H_
#else
#define KVSHARE_ATTENTION_APPEND_INL_H_
#endif

#include <algorithm>
#include <cstring>

#include "attention/load-inl.h"
#include "attention/rotary-inl.h"
#include "core/half.h"
#include "core/sequence_place.h"
#include "kvshare/call.h"

HWY_BEFORE_NAMESPACE();
namespace kvshare::HWY_NAMESPACE {

// Rows [begin, end) of the present cache of one head: copied from the past, taken from the new rows, or zeroed. In
// ascending order: where a window-sized cache drops its first rows in place, later ones move down over them.
inline void AppendRows(const AppendCall& call, const AppendPlace& place, int64_t b, int64_t head, int64_t begin,
                       int64_t end, float* row) {
  const MutableHeadsView& present = call.present;
  const bool in_place = call.past.data == present.data;
  const size_t row_bytes = BytesOf(present.type, present.head_size);
  for (int64_t t = begin; t < end; ++t) {
    const int64_t offset = present.Offset(b, head, t);
    void* to = At(present.data, present.type, offset);
    const int64_t source = t + place.skip;  // among the past's rows and the new ones
    if (t >= place.length) {
      if (!in_place) std::memset(to, 0, row_bytes);
      continue;
    }
    if (source < place.past_length) {
      if (!in_place || place.skip > 0)
        std::memcpy(to, At(call.past.data, call.past.type, call.past.Offset(b, head, source)), row_bytes);
      continue;
    }
    const int64_t s = source - place.past_length;
    if (!call.norm && !call.rotary && call.fresh.type == present.type) {
      std::memcpy(to, At(call.fresh.data, call.fresh.type, call.fresh.Offset(b, head, s)), row_bytes);
      continue;
    }
    const int64_t position = call.rotary_positions.At(b, s, call.fresh.tokens, place.rotary);
    LoadRow(call.fresh, b, head, s, call.norm, call.rotary, position, row);
    if (IsQuantized(present.type)) {
      StoreCodes(row, present, head, offset);
      continue;
    }
    WithAddress(present.data, present.type, offset, [&](auto* p) HWY_ATTR {
      ForEachVector(present.head_size,
                    [&](int64_t d, size_t n) HWY_ATTR { StoreN(hn::LoadU(F32(), row + d), p + d, n); });
    });
  }
}

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
