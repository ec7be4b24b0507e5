// attn_mask of Attention: the types that ONNX allows, numpy's broadcasting, and the copy that the kernels can read.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "kvshare/attend.h"
#include "ort/ort_context.h"

namespace kvshare::ort {

// Refuses a type that ONNX's schema does not allow. An undefined type is an absent mask.
Status CheckMaskType(std::string_view where, ONNXTensorElementDataType type);

// The mask as a view of [B, Hq, S, T], broadcast from the right as numpy does; a last extent short of T hides the rest,
// as ONNX says. bool hides; all other types are added to the scores. The view's type is one that kernels for queries of
// `query` read; where the mask's own is another, the view's data is null until the mask is converted.
Result<MaskView> ViewMask(std::string_view where, const Tensor& mask, const std::array<int64_t, 4>& scores,
                          DType query);

// Writes the mask's elements as view.type to `out`, and lets the view look at them. Stock ONNX Runtime casts them too.
void ConvertMask(const Tensor& mask, const ParallelFor& parallel, void* out, MaskView* view);

}  // namespace kvshare::ort
