// Per-target: masks, biases and the holes of key masks on a tile of scores S[key][row].
#if defined(KVSHARE_ATTENTION_MASK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSHARE_ATTENTION_MASK_INL_H_
#undef KVSHARE_ATTENTION_MASK_INL_H_
#else
#define KVSHARE_ATTENTION_MASK_INL_H_
#endif

#include <algorithm>

#include "attention/columns-inl.h"
#include "attention/place-inl.h"
#include "attention/softmax-inl.h"
#include "core/half.h"

HWY_BEFORE_NAMESPACE();
namespace kvshare::HWY_NAMESPACE {

// What [index, index + n) of a mask adds to scores; of a bool mask -inf where it hides.
HWY_INLINE Vec LoadMask(const MaskView& mask, int64_t index, size_t n) {
  if (mask.type != DType::kBool) {
    const Vec bias = LoadAny(mask.data, mask.type, index, n);
    if (mask.type != DType::kF16) return bias;
    // Where f16 is promoted without an instruction for it, -inf comes out as a number below all finite ones of f16.
    return hn::IfThenElse(hn::Lt(bias, hn::Set(F32(), -65504.0F)), hn::Set(F32(), kHidden), bias);
  }
  const hn::Rebind<uint8_t, F32> d8;
  const hn::RebindToSigned<F32> di;
  const auto keep = hn::PromoteTo(di, hn::LoadN(d8, static_cast<const uint8_t*>(mask.data) + index, n));
  return hn::IfThenElseZero(hn::RebindMask(F32(), hn::Eq(keep, hn::Zero(di))), hn::Set(F32(), kHidden));
}

// Adds `bias` to the scores at `at`; a bool mask hides whatever the score is, NaN too.
template <typename D>
HWY_INLINE void AddMask(D d, hn::Vec<D> bias, bool keep_or_hide, float* at) {
  const auto score = hn::LoadU(d, at);
  const auto hidden = hn::Set(d, kHidden);
  hn::StoreU(keep_or_hide ? hn::IfThenElse(hn::Eq(bias, hidden), hidden, score) : hn::Add(score, bias), d, at);
}

// Adds the bias, or hides keys: a mask's rows lie along the keys, the scores' along the rows. Keys past `count`, up to
// a full vector, may get any score.
template <int R>
inline void ApplyMask(const Job& job, const Place& place, int64_t first_row, int64_t rows, int64_t first_key,
                      int64_t count, float* scores) {
  const MaskView& mask = job.call->mask;
  const F32 df;
  const bool keep_or_hide = mask.type == DType::kBool;
  const int64_t first_column = job.sequences[place.b].first_column + first_key;
  const int64_t covered = std::clamp<int64_t>(mask.keys - first_column, 0, count);
  // Where the mask of row r begins; idle rows take the last one's.
  const auto offset = [&](int64_t r) HWY_ATTR {
    const int64_t row = first_row + std::min(r, rows - 1);
    return place.b * mask.batch_stride + place.HeadOf(job, row) * mask.head_stride +
           place.PositionOf(job, row) * mask.query_stride + first_column * mask.key_stride;
  };
  if (mask.key_stride != 1) {
    for (int64_t r = 0; r < R; ++r)
      for (int64_t j = 0; j < covered; ++j)
        AddMask(hn::FixedTag<float, 1>(),
                hn::Set(hn::FixedTag<float, 1>(), hn::GetLane(LoadMask(mask, offset(r) + j * mask.key_stride, 1))),
                keep_or_hide, scores + j * R + r);
  } else if constexpr (R < 4) {
    for (int64_t j = 0; j < covered; j += kLanes) {
      const size_t n = std::min<int64_t>(kLanes, covered - j);
      const Vec a = LoadMask(mask, offset(0) + j, n);
      if constexpr (R == 1) {
        AddMask(df, a, keep_or_hide, scores + j);
      } else {
        const Vec b = LoadMask(mask, offset(1) + j, n);
        AddMask(df, hn::InterleaveWholeLower(df, a, b), keep_or_hide, scores + j * R);
        AddMask(df, hn::InterleaveWholeUpper(df, a, b), keep_or_hide, scores + j * R + kLanes);
      }
    }
  } else {
    for (int64_t r = 0; r < R; r += 4) {
      const int64_t a = offset(r), b = offset(r + 1), c = offset(r + 2), d = offset(r + 3);
      for (int64_t j = 0; j < covered; j += kLanes) {
        const size_t n = std::min<int64_t>(kLanes, covered - j);
        float* to = scores + j * R + r;
        ForEachColumn(
            LoadMask(mask, a + j, n), LoadMask(mask, b + j, n), LoadMask(mask, c + j, n), LoadMask(mask, d + j, n),
            [&](int64_t lane, hn::Vec<Quad> column) HWY_ATTR { AddMask(Quad(), column, keep_or_hide, to + lane * R); });
      }
    }
  }
  std::fill_n(scores + covered * R, (count - covered) * R, kHidden);
}

// A bias as low as kHides takes its key's weight, beside a key whose bias is at least kSeen: only scores that differ by
// more than 3e4 would make it a weight above 0. Exporters hide with -inf or with their type's lowest number.
inline constexpr float kHides = -6e4F;
inline constexpr float kSeen = -3e4F;

// A row's `range` without the keys that the mask hides at its ends: a window that is written as a mask is then read as
// a window. The whole range where that is not certain. Needs a mask whose keys are adjacent.
inline MaskedRange TrimRange(const Job& job, int64_t b, int64_t s, int64_t head, KeyRange range) {
  const MaskView& mask = job.call->mask;
  const int64_t first_column = job.sequences[b].first_column;
  const F32 df;
  constexpr int64_t kVector = kLanes;
  constexpr int64_t kStretch = 4 * kVector;
  const int64_t key0 = b * mask.batch_stride + head * mask.head_stride + s * mask.query_stride + first_column;
  const int64_t end = std::min<int64_t>(range.end, mask.keys - first_column);
  const auto seen = [&](int64_t key, int64_t n) HWY_ATTR {
    return hn::AndNot(hn::Le(LoadMask(mask, key0 + key, n), hn::Set(df, kHides)), hn::FirstN(df, n));
  };
  const auto biased = [&](int64_t key, int64_t n) HWY_ATTR {
    return hn::And(hn::Ne(LoadMask(mask, key0 + key, n), hn::Zero(df)), hn::FirstN(df, n));
  };
  // Whether `is` holds for no key of a stretch.
  const auto none = [&](auto is, int64_t key) HWY_ATTR {
    auto any = is(key, kVector);
    for (int64_t at = kVector; at < kStretch; at += kVector) any = hn::Or(any, is(key + at, kVector));
    return hn::AllFalse(df, any);
  };
  // The first key from `key` on for which `is` holds; `stop` if there is none before.
  const auto find_first = [&](auto is, int64_t key, int64_t stop) HWY_ATTR {
    while (key + kStretch <= stop && none(is, key)) key += kStretch;
    for (; key < stop; key += kVector) {
      const intptr_t lane = hn::FindFirstTrue(df, is(key, std::min(kVector, stop - key)));
      if (lane >= 0) return key + lane;
    }
    return stop;
  };
  const int64_t first = find_first(seen, range.begin, end);
  if (first >= end) return {range, true};
  int64_t last = end;  // one past
  while (last - kStretch > first && none(seen, last - kStretch)) last -= kStretch;
  for (intptr_t lane = -1; lane < 0;) {  // ends at `first`, which is seen
    const int64_t n = std::min(kVector, last - first);
    lane = hn::FindLastTrue(df, seen(last - n, n));
    last += lane - n + 1;
  }
  const auto sees = [&](int64_t key) HWY_ATTR { return hn::GetLane(LoadMask(mask, key0 + key, 1)) >= kSeen; };
  if (!sees(first) && !sees(last - 1)) return {range, true};
  return {{static_cast<int32_t>(first), static_cast<int32_t>(last)}, find_first(biased, first, last) < last};
}

// Hides the holes of a key mask inside the rows' ranges.
inline void ApplyKeyMask(const Job& job, const Place& place, int64_t first_key, int64_t count, float* scores) {
  const KeyMaskView& mask = job.call->key_mask;
  const int64_t R = job.plan.block_rows;
  for (int64_t j = 0; j < count; ++j)
    if (LoadElement(mask.data, mask.type, place.b * mask.batch_stride + first_key + j) == 0)
      std::fill_n(scores + j * R, R, kHidden);
}

// Whether the mask does anything in the ranges of a block's rows.
inline bool IsMasked(const Job& job, const Place& place, int64_t block, int64_t rows) {
  if (!job.call->mask) return false;
  if (job.masked == nullptr) return true;
  Row row = RowAt(job, place, block * job.plan.block_rows);
  for (const int64_t end = row.index + rows; row.index < end; row.Next(job, place))
    if (job.masked[job.RangeIndex(place.b, row.position, row.head)]) return true;
  return false;
}

// The sums of `count` keys from `begin` on become scores as the softmax takes them: capped, biased, hidden where a row
// does not see.
template <int R>
void MaskTile(const Job& job, const Place& place, const Scratch& scratch, int64_t block, const BlockRange& seen,
              int64_t begin, int64_t count) {
  const AttentionCall& call = *job.call;
  constexpr int64_t kState = kStateLanes<R>;
  const int64_t rows = std::min<int64_t>(R, place.rows - block * R);
  const int64_t lanes = RoundUp(count * R, kLanes);
  float* scores = scratch.scores;
  if (call.spec.softcap > 0) SoftcapTile(scores, lanes, call.spec.softcap);
  if (IsMasked(job, place, block, rows)) ApplyMask<R>(job, place, block * R, rows, begin, count, scores);
  if (call.key_mask && job.holes[place.b]) ApplyKeyMask(job, place, begin, count, scores);
  if (begin < seen.all_lo || begin + count > seen.all_hi)
    HideOutside<R>(scores, lanes, static_cast<int32_t>(begin), scratch.begin + block * kState,
                   scratch.end + block * kState);
  for (int64_t lane = count * R; lane < lanes; ++lane) scores[lane] = kHidden;
}

// The running state of a block's rows.
template <int R>
inline RowState StateOf(const Scratch& scratch, int64_t block) {
  return {scratch.max + block * kStateLanes<R>, scratch.sum + block * kStateLanes<R>};
}

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
