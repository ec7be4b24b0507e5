// The tile kernels of K and V in int8, int4 and fp8.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/kernels_quantized.cc"
#include <hwy/foreach_target.h>
// The order matters: foreach_target.h first.
#include <hwy/highway.h>

#include "attention/make_kernels-inl.h"

namespace kvshare::HWY_NAMESPACE {

const TileCode kQuantizedCode[] = {
#define KVSHARE_TILE_KERNEL(name, type, rows, products) \
  CodeIfMine<DType::type, Products::products, rows, IsQuantized(DType::type)>(),
#include "attention/attention_kernels.inc"
#undef KVSHARE_TILE_KERNEL
};

#if KVSHARE_MATRIX_PRODUCTS
const TileCode kQuantizedMatrixCode[] = {
#define KVSHARE_TILE_KERNEL(name, type, rows, products) \
  MatrixCodeIfMine<DType::type, Products::products, rows, IsQuantized(DType::type)>(),
#include "attention/attention_kernels.inc"
#undef KVSHARE_TILE_KERNEL
};
#endif

#if HWY_TARGET_IS_NEON
const TileCode kQuantizedInF32Code[] = {
#define KVSHARE_TILE_KERNEL(name, type, rows, products) \
  CodeIfMine<DType::type, Products::kFma, rows, IsQuantized(DType::type)>(),
#include "attention/attention_kernels.inc"
#undef KVSHARE_TILE_KERNEL
};
#endif

}  // namespace kvshare::HWY_NAMESPACE
