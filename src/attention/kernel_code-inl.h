// Per-target: the rows of attention_kernels.inc as code.
#if defined(KVSHARE_ATTENTION_KERNEL_CODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSHARE_ATTENTION_KERNEL_CODE_INL_H_
#undef KVSHARE_ATTENTION_KERNEL_CODE_INL_H_
#else
#define KVSHARE_ATTENTION_KERNEL_CODE_INL_H_
#endif

#include <type_traits>

#include "attention/digits-inl.h"
#include "attention/exact-inl.h"
#include "attention/kernel_table.h"
#include "attention/tile-inl.h"
#include "attention/wide-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvshare::HWY_NAMESPACE {

template <DType>
struct ElementOf;
template <>
struct ElementOf<DType::kF32> {
  using Type = float;
};
template <>
struct ElementOf<DType::kF16> {
  using Type = hwy::float16_t;
};
template <>
struct ElementOf<DType::kBF16> {
  using Type = hwy::bfloat16_t;
};
template <>
struct ElementOf<DType::kI8> {
  using Type = int8_t;
};
template <>
struct ElementOf<DType::kI4> {
  using Type = I4;
};
template <>
struct ElementOf<DType::kF8E4M3> {
  using Type = F8E4M3;
};

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

template <typename T, Products kProducts>
struct ProductsOf {
  using P = Fma<T>;
};
template <typename T>
struct ProductsOf<T, Products::kDots> {
  using P = Dots<T>;
};

// Whether the narrow kernels of P have that way of reading. Codes take long to convert: streams were even or slower
// where few rows share a key. Dot products are never spread, as they take two keys at a time.
template <typename P>
constexpr bool HasReading(Reading reading) {
  const bool floats = sizeof(typename P::Type) >= sizeof(uint16_t);
  switch (reading) {
    case Reading::kTileAhead: return true;
    case Reading::kSpread: return kHasSpreads && floats && std::is_same_v<P, Fma<typename P::Type>>;
    case Reading::kStream: return kHasStreams && floats;
  }
  return false;
}

template <typename P, int R, Reading kReading>
constexpr NarrowCode MakeNarrowCode() {
  if constexpr (HasReading<P>(kReading))
    return {&ScoreTile<P, R, kReading>, &WeightTile<P, R, kReading>};
  else
    return {};
}

template <typename P, int R>
constexpr TileCode MakeTileCode() {
  if constexpr (R > kNarrowRows)
    return {.narrow = {},
            .pack_keys = &PackKeys<P>,
            .pack_values = &PackValues<P>,
            .score_wide = &ScoreWide<P, R>,
            .weight_wide = &WeightWide<P, R>,
            .pack_query = &P::PackQuery};
  else
    return {.narrow = {MakeNarrowCode<P, R, Reading::kTileAhead>(), MakeNarrowCode<P, R, Reading::kSpread>(),
                       MakeNarrowCode<P, R, Reading::kStream>()},
            .pack_query = &P::PackQuery,
            .key_rows_ahead = &KeyRowsAhead<P>,
            .value_rows_ahead = &ValueRowsAhead<P, R>};
}

template <typename T, Products kProducts, int R>
constexpr TileCode CodeOfRow() {
  TileCode code = MakeTileCode<typename ProductsOf<T, kProducts>::P, R>();
  if constexpr (R <= kNarrowRows && kHasCodes<T>) {
    code.score_f32 = &ScoreTile<Fma<T>, R, Reading::kTileAhead>;
    code.score_f64 = &ScoreInF64<T, R>;
    code.may_score_f32 = &MayScoreInF32<T>;
  }
#if HWY_TARGET <= HWY_AVX3_DL  // kHasVnni; the others multiply in f32
  if constexpr (kProducts == Products::kDigits) {
    code.narrow[static_cast<int>(Reading::kTileAhead)] = {&ScoreDigits<T, R>, &WeightDigits<T, R>};
    code.pack_query = &PackQueryDigits;
    code.may_score = &MayScore<T>;
  }
#endif
  return code;
}

// In the table's order.
inline constexpr TileCode kTileCode[] = {
#define KVSHARE_TILE_KERNEL(name, type, rows, products) \
  CodeOfRow<ElementOf<DType::type>::Type, Products::products, rows>(),
#include "attention/attention_kernels.inc"
#undef KVSHARE_TILE_KERNEL
};
inline const TileCode& CodeOf(const TileKernelRow* row) { return kTileCode[row - TileKernels().data()]; }

// How a narrow row of the table reads K or V of that head size here.
inline Reading ReadingOf(const TileKernelRow* row, int64_t head_size) {
  const Reading preferred = PreferredReading(ThisCpu(), head_size, BytesOf(row->type, head_size));
  return CodeOf(row).Narrow(preferred).score != nullptr ? preferred : Reading::kTileAhead;
}

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
