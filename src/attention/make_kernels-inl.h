// Per-target: makes a TileCode of a row of attention_kernels.inc. For kernels_*.cc alone: this is what takes long to
// compile.
#if defined(KVSHARE_ATTENTION_MAKE_KERNELS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSHARE_ATTENTION_MAKE_KERNELS_INL_H_
#undef KVSHARE_ATTENTION_MAKE_KERNELS_INL_H_
#else
#define KVSHARE_ATTENTION_MAKE_KERNELS_INL_H_
#endif

#include <type_traits>

#include "attention/kernel_code-inl.h"

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
#if KVSHARE_BYTE_DOTS  // the others multiply in f32
  if constexpr (kProducts == Products::kDigits) {
    code.narrow[static_cast<int>(Reading::kTileAhead)] = {&ScoreDigits<T, R>, &WeightDigits<T, R, VectorStrips<R>>};
    code.pack_query = &PackQueryDigits;
    code.may_score = &MayScore<T>;
  }
#endif
  return code;
}

// The code of a row where it is `kMine`, else none.
template <DType kType, Products kProducts, int R, bool kMine>
constexpr TileCode CodeIfMine() {
  if constexpr (kMine)
    return CodeOfRow<typename ElementOf<kType>::Type, kProducts, R>();
  else
    return {};
}

#if KVSHARE_MATRIX_PRODUCTS
// The code of a row for CPUs that multiply matrices of bytes.
template <DType kType, Products kProducts, int R, bool kMine>
constexpr TileCode MatrixCodeIfMine() {
  TileCode code = CodeIfMine<kType, kProducts, R, kMine>();
  if constexpr (kMine && kProducts == Products::kDigits) {
    using T = typename ElementOf<kType>::Type;
    code.narrow[static_cast<int>(Reading::kTileAhead)] = {&ScoreDigitsByMatrix<T, R>,
                                                          &WeightDigits<T, R, MatrixStrips<R>>};
  }
  return code;
}
#endif

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
