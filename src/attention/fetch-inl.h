// Per-target: bringing rows of K and V into a cache before they are read. Nothing here reads memory: a prefetch of an
// address that is not there does nothing.
#if defined(KVSHARE_ATTENTION_FETCH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSHARE_ATTENTION_FETCH_INL_H_
#undef KVSHARE_ATTENTION_FETCH_INL_H_
#else
#define KVSHARE_ATTENTION_FETCH_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "attention/load-inl.h"
#include "attention/tuning-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvshare::HWY_NAMESPACE {

inline constexpr int64_t kLine = 64;
inline constexpr int64_t kPage = 4 << 10;

HWY_INLINE void PrefetchL1(const void* p) { __builtin_prefetch(p, 0, 3); }
// Not into L1: a tile ahead is more than L1 holds (Highway's Prefetch asks for L1).
HWY_INLINE void PrefetchL2(const void* p) { __builtin_prefetch(p, 0, 2); }

// Rows to bring meanwhile: the first `count` from `rows` on, `stride_bytes` apart.
struct Fetch {
  const char* rows = nullptr;
  int64_t stride_bytes = 0;
  int64_t count = 0;

  // Where row j lies; `instead`, which is at hand anyway, once there is no such row.
  HWY_INLINE const char* Row(int64_t j, const void* instead) const {
    return j < count ? rows + j * stride_bytes : static_cast<const char*>(instead);
  }
  Fetch From(int64_t first) const { return {rows + first * stride_bytes, stride_bytes, count - first}; }
  // Whether there are rows, without gaps.
  HWY_INLINE bool IsDense(int64_t row_bytes) const { return count > 0 && stride_bytes == row_bytes; }
  // Whether rows [first, first + wanted) are all there.
  HWY_INLINE bool Has(int64_t first, int64_t wanted) const { return first + wanted <= count; }
};

// Whether element d of a row is the first of its cache line, where a load takes `count`: narrow types have several
// loads a line.
template <typename T>
HWY_INLINE bool OpensLine(int64_t d, int64_t count) {
  return Element<T>::Bytes(count) >= kLine || Element<T>::Bytes(d) % kLine < Element<T>::Bytes(count);
}

// Fetches a line into L1 once `with` is at hand; returns the next. The compiler would put all fetches of a turn first,
// where they fill the queue of misses and hold up loads.
template <class V>
HWY_INLINE const char* FetchWith(V& with, const char* line) {
#if HWY_ARCH_X86
  __asm__("prefetcht0 %1" : "+v"(with.raw) : "m"(*line));
#else
  static_cast<void>(with);
  PrefetchL1(line);
#endif
  return line + kLine;
}

// Touches the pages that `count` rows open, those from row `first` and kPageBytesAhead further on.
HWY_INLINE void OpenPages(const Fetch& fetch, int64_t first, int64_t count) {
  if (fetch.stride_bytes <= 0) return;
  first += std::max<int64_t>(1, kPageBytesAhead / fetch.stride_bytes);
  const char* row = fetch.rows + first * fetch.stride_bytes;
  const char* const end = fetch.rows + std::min(first + count, fetch.count) * fetch.stride_bytes;
  if (fetch.stride_bytes < kPage) row += -reinterpret_cast<intptr_t>(row) & (kPage - 1);
  for (; row < end; row += std::max(kPage, fetch.stride_bytes)) PrefetchL1(row);
}

// Brings `count` rows of `row_bytes` at once, from row `first` on.
HWY_INLINE void FetchRows(const Fetch& fetch, int64_t first, int64_t count, int64_t row_bytes) {
  const int64_t end = std::min(first + count, fetch.count);
  for (int64_t j = first; j < end; ++j)
    for (int64_t at = 0; at < row_bytes; at += kLine) PrefetchL1(fetch.rows + j * fetch.stride_bytes + at);
}

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
