// Per-target: the rows of attention_kernels.inc as code.
#if defined(KVSHARE_ATTENTION_KERNEL_CODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSHARE_ATTENTION_KERNEL_CODE_INL_H_
#undef KVSHARE_ATTENTION_KERNEL_CODE_INL_H_
#else
#define KVSHARE_ATTENTION_KERNEL_CODE_INL_H_
#endif

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

// A row of the table as code: a wide one packs its tiles for ScoreWide and WeightWide, the others read K and V as they
// lie.
struct TileCode {
  decltype(&ScoreTile<Fma<float>, 1>) score;
  decltype(&WeightTile<Fma<float>, 1>) weight;
  decltype(&PackKeys<Fma<float>>) pack_keys;
  decltype(&PackValues<Fma<float>>) pack_values;
  decltype(&ScoreWide<Fma<float>, 48>) score_wide;
  decltype(&WeightWide<Fma<float>, 48>) weight_wide;
  decltype(&Fma<float>::PackQuery) pack_query;
  bool spreads;  // kSpreads
  // Narrow rows of quantized types: how else rows are scored, and whether digits or f32 may score one.
  decltype(&ScoreTile<Fma<float>, 1>) score_f32 = nullptr;
  decltype(&ScoreTile<Fma<float>, 1>) score_f64 = nullptr;
  decltype(&MayScore<int8_t>) may_score = nullptr;  // of digits alone
  decltype(&MayScoreInF32<int8_t>) may_score_f32 = nullptr;
};

template <typename T, Products kProducts>
struct ProductsOf {
  using P = Fma<T>;
};
template <typename T>
struct ProductsOf<T, Products::kDots> {
  using P = Dots<T>;
};

template <typename P, int R>
constexpr TileCode MakeTileCode() {
  if constexpr (R > kNarrowRows)
    return {nullptr, nullptr, &PackKeys<P>, &PackValues<P>, &ScoreWide<P, R>, &WeightWide<P, R>, &P::PackQuery, false};
  else
    return {&ScoreTile<P, R>, &WeightTile<P, R>, nullptr, nullptr, nullptr, nullptr, &P::PackQuery, kSpreads<P>};
}

template <typename T, Products kProducts, int R>
constexpr TileCode CodeOfRow() {
  TileCode code = MakeTileCode<typename ProductsOf<T, kProducts>::P, R>();
  if constexpr (R <= kNarrowRows && kHasCodes<T>) {
    code.score_f32 = &ScoreTile<Fma<T>, R>;
    code.score_f64 = &ScoreInF64<T, R>;
    code.may_score_f32 = &MayScoreInF32<T>;
  }
#if HWY_TARGET <= HWY_AVX3_DL  // kHasDigits; the others multiply in f32
  if constexpr (kProducts == Products::kDigits) {
    code.score = &ScoreDigits<T, R>;
    code.weight = &WeightDigits<T, R>;
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

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
