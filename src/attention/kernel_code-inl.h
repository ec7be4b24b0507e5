// Per-target: the rows of attention_kernels.inc as code.
#if defined(KVSHARE_ATTENTION_KERNEL_CODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVSHARE_ATTENTION_KERNEL_CODE_INL_H_
#undef KVSHARE_ATTENTION_KERNEL_CODE_INL_H_
#else
#define KVSHARE_ATTENTION_KERNEL_CODE_INL_H_
#endif

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

// In the table's order.
inline constexpr TileCode kTileCode[] = {
#define KVSHARE_TILE_KERNEL(name, type, rows, products) \
  MakeTileCode<ProductsOf<ElementOf<DType::type>::Type, Products::products>::P, rows>(),
#include "attention/attention_kernels.inc"
#undef KVSHARE_TILE_KERNEL
};
inline const TileCode& CodeOf(const TileKernelRow* row) { return kTileCode[row - TileKernels().data()]; }

}  // namespace kvshare::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
