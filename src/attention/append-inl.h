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
#include "kvshare/call.h"

HWY_BEFORE_NAMESPACE();
namespace kvshare::HWY_NAMESPACE {

// Rows [begin, end) of the present cache of one head: copied from the past, taken from the new rows, or zeroed. In
// ascending order: where a window-sized cache drops its first rows in place, later ones move down over them.
inline void AppendRows(const AppendCall& call, int64_t b, int64_t head, int64_t begin, int64_t end, float* row) {
  const MutableHeadsView& present = call.present;
  const bool in_place = call.past.data == present.data;
  const int64_t past_length = call.past_length != nullptr ? call.past_length[b] : 0;
  const int64_t skip = call.skip != nullptr ? call.skip[b] : 0;
  const int64_t length = call.length != nullptr ? call.length[b] : past_length + call.fresh.tokens - skip;
  const size_t row_bytes = BytesOf(present.type, present.head_size);
  for (int64_t t = begin; t < end; ++t) {
    const int64_t offset = present.Offset(b, head, t);
    void* to = At(present.data, present.type, offset);
    const int64_t source = t + skip;  // among the past's rows and the new ones
    if (t >= length) {
      if (!in_place) std::memset(to, 0, row_bytes);
      continue;
    }
    if (source < past_length) {
      if (!in_place || skip > 0)
        std::memcpy(to, At(call.past.data, call.past.type, call.past.Offset(b, head, source)), row_bytes);
      continue;
    }
    const int64_t s = source - past_length;
    if (!call.norm && !call.rotary && call.fresh.type == present.type) {
      std::memcpy(to, At(call.fresh.data, call.fresh.type, call.fresh.Offset(b, head, s)), row_bytes);
      continue;
    }
    const int64_t position =
        call.rotary_positions != nullptr ? call.rotary_positions[b * call.fresh.tokens + s] : source;
    LoadRow(call.fresh, b, head, s, call.norm, call.rotary, position, row);
    if (IsQuantized(present.type)) {
      StoreCodes(row, present, head, offset);
      continue;
    }
    for (int64_t d = 0; d < present.head_size; d += kLanes)
      StoreAny(hn::LoadU(F32(), row + d), to, present.type, d, std::min<int64_t>(kLanes, present.head_size - d));
  }
}

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
