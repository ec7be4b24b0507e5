// The tile kernels of K and V in f32.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/kernels_f32.cc"
#include <hwy/foreach_target.h>
// The order matters: foreach_target.h first.
#include <hwy/highway.h>

#include "attention/make_kernels-inl.h"

namespace kvshare::HWY_NAMESPACE {

const TileCode kF32Code[] = {
#define KVSHARE_TILE_KERNEL(name, type, rows, products) \
  CodeIfMine<DType::type, Products::products, rows, DType::type == DType::kF32>(),
#include "attention/attention_kernels.inc"
#undef KVSHARE_TILE_KERNEL
};

}  // namespace kvshare::HWY_NAMESPACE
