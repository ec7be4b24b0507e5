// Per-target: the rows of attention_kernels.inc as code. kernels_*.cc make them (make_kernels-inl.h), one file a width
// of element, so that the compiler works on several at a time.
#if defined(KVSHARE_ATTENTION_KERNEL_CODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSHARE_ATTENTION_KERNEL_CODE_INL_H_
#undef KVSHARE_ATTENTION_KERNEL_CODE_INL_H_
#else
#define KVSHARE_ATTENTION_KERNEL_CODE_INL_H_
#endif

#include "attention/digits-inl.h"
#include "attention/exact-inl.h"
#include "attention/kernel_table.h"
#include "attention/matrix-inl.h"
#include "attention/tile-inl.h"
#include "attention/weight_digits-inl.h"
#include "attention/wide-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvshare::HWY_NAMESPACE {

// The kernels of a narrow row for one way of reading; null where the target has no use for it.
struct NarrowCode {
  decltype(&ScoreTile<Fma<float>, 1, Reading::kTileAhead>) score = nullptr;
  decltype(&WeightTile<Fma<float>, 1, Reading::kTileAhead>) weight = nullptr;
};

// A row of the table as code: a wide one packs its tiles for ScoreWide and WeightWide, the others read K and V as they
// lie.
struct TileCode {
  NarrowCode narrow[kReadings];
  decltype(&PackKeys<Fma<float>>) pack_keys = nullptr;
  decltype(&PackValues<Fma<float>>) pack_values = nullptr;
  decltype(&ScoreWide<Fma<float>, 48>) score_wide = nullptr;
  decltype(&WeightWide<Fma<float>, 48>) weight_wide = nullptr;
  decltype(&Fma<float>::PackQuery) pack_query = nullptr;
  // Narrow rows of quantized types: how else rows are scored, and whether digits or f32 may score one.
  decltype(NarrowCode::score) score_f32 = nullptr;
  decltype(NarrowCode::score) score_f64 = nullptr;
  decltype(&MayScore<int8_t>) may_score = nullptr;  // of digits alone
  decltype(&MayScoreInF32<int8_t>) may_score_f32 = nullptr;
  // kStream: how many rows further on the kernels of scores and of weights bring theirs.
  int64_t (*key_rows_ahead)(int64_t head_size) = nullptr;
  int64_t (*value_rows_ahead)(int64_t head_size) = nullptr;

  const NarrowCode& Narrow(Reading reading) const { return narrow[static_cast<int>(reading)]; }
};

// In the table's order; each holds code for the rows of its element types alone.
extern const TileCode kF32Code[];
extern const TileCode k16BitCode[];
extern const TileCode kQuantizedCode[];
#if KVSHARE_MATRIX_PRODUCTS
extern const TileCode kQuantizedMatrixCode[];  // of CPUs that multiply matrices of bytes
#endif
#if HWY_TARGET_IS_NEON
extern const TileCode kQuantizedInF32Code[];  // of CPUs that lack the products of digits
#endif

inline const TileCode& CodeOf(const TileKernelRow* row) {
  const auto index = row - TileKernels().data();
  switch (BytesOf(row->type, 2)) {  // of two elements
    case 8: return kF32Code[index];
    case 4: return k16BitCode[index];
    default:
#if HWY_TARGET_IS_NEON
      if (!HasByteDots()) return kQuantizedInF32Code[index];
#endif
#if KVSHARE_MATRIX_PRODUCTS
      if (HasMatrixProducts()) return kQuantizedMatrixCode[index];
#endif
      return kQuantizedCode[index];
  }
}

// How a narrow row of the table reads K or V of that head size here, where a block of rows needs `bytes` of both.
inline Reading ReadingOf(const TileKernelRow* row, int64_t head_size, int64_t bytes) {
  const Reading preferred = PreferredReading(ThisCpu(), row->type, row->rows, head_size, bytes);
  return CodeOf(row).Narrow(preferred).score != nullptr ? preferred : Reading::kTileAhead;
}

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
