// The tile kernels of K and V in f16 and bf16.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/kernels_16bit.cc"
#include <hwy/foreach_target.h>
// The order matters: foreach_target.h first.
#include <hwy/highway.h>

#include "attention/make_kernels-inl.h"

namespace kvshare::HWY_NAMESPACE {

const TileCode k16BitCode[] = {
#define KVSHARE_TILE_KERNEL(name, type, rows, products) \
  CodeIfMine<DType::type, Products::products, rows, DType::type == DType::kF16 || DType::type == DType::kBF16>(),
#include "attention/attention_kernels.inc"
#undef KVSHARE_TILE_KERNEL
};

}  // namespace kvshare::HWY_NAMESPACE
