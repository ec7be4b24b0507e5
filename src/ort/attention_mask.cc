#include "ort/attention_mask.h"

#include <fmt/format.h>

#include <algorithm>

#include "ort/input_error.h"

namespace kvshare::ort {
namespace {

using Convert = void (*)(const void* from, int64_t begin, int64_t end, void* to);

template <typename From, typename To>
void ConvertElements(const void* from, int64_t begin, int64_t end, void* to) {
  std::transform(static_cast<const From*>(from) + begin, static_cast<const From*>(from) + end,
                 static_cast<To*>(to) + begin, [](From element) { return static_cast<To>(element); });
}

// Null for the types that kernels read themselves, and for those that are no mask's.
template <typename To>
Convert ConvertTo(ONNXTensorElementDataType from) {
  switch (from) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE: return &ConvertElements<double, To>;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8: return &ConvertElements<int8_t, To>;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16: return &ConvertElements<int16_t, To>;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32: return &ConvertElements<int32_t, To>;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64: return &ConvertElements<int64_t, To>;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8: return &ConvertElements<uint8_t, To>;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16: return &ConvertElements<uint16_t, To>;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32: return &ConvertElements<uint32_t, To>;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64: return &ConvertElements<uint64_t, To>;
    default: return nullptr;
  }
}

bool IsReadByKernels(ONNXTensorElementDataType type, DType query) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16: return true;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE: return query == DType::kF64;
    default: return false;
  }
}

struct ConvertJob {
  Convert convert;
  const void* from;
  void* to;
  int64_t count;
};

constexpr int64_t kElementsOfATask = 64 << 10;

void ConvertTask(void* arg, int64_t task) {
  const auto& job = *static_cast<const ConvertJob*>(arg);
  const int64_t begin = task * kElementsOfATask;
  job.convert(job.from, begin, std::min(begin + kElementsOfATask, job.count), job.to);
}

}  // namespace

Status CheckMaskType(std::string_view where, ONNXTensorElementDataType type) {
  if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED || IsReadByKernels(type, DType::kF64) ||
      ConvertTo<float>(type) != nullptr)
    return {};
  return InputError(where, "attn_mask", fmt::format("has type {}", NameOf(type)),
                    "bool, a type of floats from f16 to f64, or one of integers");
}

Result<MaskView> ViewMask(std::string_view where, const Tensor& mask, const std::array<int64_t, 4>& scores,
                          DType query) {
  KVSHARE_RETURN_IF_ERROR(CheckMaskType(where, mask.type));
  if (mask.rank < 1 || mask.rank > scores.size())
    return InputError(where, "attn_mask", fmt::format("has rank {} (shape {})", mask.rank, mask.ShapeText()),
                      "rank 1 to 4");
  std::array<int64_t, 4> stride = {};
  int64_t step = 1;
  for (size_t i = 0; i < mask.rank; ++i) {
    const size_t axis = scores.size() - 1 - i;
    const int64_t extent = mask.dims[mask.rank - 1 - i];
    // A last extent may be short of T; 1 is every extent's, also that of no keys.
    if (i == 0 ? extent > std::max<int64_t>(scores[axis], 1) : (extent != 1 && extent != scores[axis]))
      return InputError(
          where, "attn_mask", fmt::format("has shape {}", mask.ShapeText()),
          fmt::format("one that broadcasts to {}x{}x{}x{}, [B, Hq, S, T]", scores[0], scores[1], scores[2], scores[3]));
    stride[axis] = i > 0 && extent == 1 ? 0 : step;
    step *= extent;
  }
  const bool read = IsReadByKernels(mask.type, query);
  return MaskView{read ? mask.data : nullptr,
                  read                   ? mask.CoreType()
                  : query == DType::kF64 ? DType::kF64
                                         : DType::kF32,
                  stride[0],
                  stride[1],
                  stride[2],
                  1,
                  mask.dims[mask.rank - 1]};
}

void ConvertMask(const Tensor& mask, const ParallelFor& parallel, void* out, MaskView* view) {
  ConvertJob job{view->type == DType::kF64 ? ConvertTo<double>(mask.type) : ConvertTo<float>(mask.type), mask.data, out,
                 mask.Count()};
  parallel.run(parallel.context, (job.count + kElementsOfATask - 1) / kElementsOfATask, &ConvertTask, &job);
  view->data = out;
}

}  // namespace kvshare::ort
