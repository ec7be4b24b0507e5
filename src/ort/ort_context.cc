#include "ort/ort_context.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "ort/tsan.h"

namespace kvshare::ort {

Status FromOrt(const OrtApi& api, OrtStatus* status) {
  if (status == nullptr) return {};
  const OrtErrorCode code = api.GetErrorCode(status);
  std::string message = api.GetErrorMessage(status);
  api.ReleaseStatus(status);
  if (code == ORT_INVALID_ARGUMENT) return Status::InvalidInput(std::move(message));
  if (code == ORT_NOT_IMPLEMENTED) return Status::Refused(std::move(message));
  return Status::Internal(std::move(message));
}

OrtStatus* ToOrt(const OrtApi& api, const Status& status) {
  switch (status.code()) {
    case StatusCode::kOk: return nullptr;
    case StatusCode::kInvalidInput: return api.CreateStatus(ORT_INVALID_ARGUMENT, status.message().c_str());
    case StatusCode::kRefused: return api.CreateStatus(ORT_NOT_IMPLEMENTED, status.message().c_str());
    case StatusCode::kInternal: break;
  }
  return api.CreateStatus(ORT_FAIL, status.message().c_str());
}

const char* NameOf(ONNXTensorElementDataType type) {
  if (const auto known = DTypeOf(type)) return kvshare::NameOf(*known);
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8: return "uint8";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16: return "uint16";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16: return "int16";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32: return "uint32";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64: return "uint64";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING: return "string";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_COMPLEX64: return "complex64";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_COMPLEX128: return "complex128";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FNUZ: return "float8e4m3fnuz";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E5M2: return "float8e5m2";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E5M2FNUZ: return "float8e5m2fnuz";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E8M0: return "float8e8m0";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT4E2M1: return "float4e2m1";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT4: return "uint4";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT4: return "int4";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT2: return "uint2";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT2: return "int2";
    default: return "unknown";
  }
}

int64_t Tensor::Count() const {
  int64_t count = 1;
  for (const int64_t dim : Dims()) count *= dim;
  return count;
}

std::string Tensor::ShapeText() const { return rank == 0 ? "scalar" : fmt::format("{}", fmt::join(Dims(), "x")); }

namespace {

// ORT's two-call protocol for strings: ask the size, then fill. Empty where the call fails.
template <typename Get>
std::optional<std::string> ReadString(const OrtApi& api, Get get) {
  size_t size = 0;
  if (!FromOrt(api, get(nullptr, &size)).ok() || size == 0) return std::nullopt;
  std::string text(size, '\0');
  if (!FromOrt(api, get(text.data(), &size)).ok()) return std::nullopt;
  text.resize(size - 1);
  return text;
}

}  // namespace

std::string KernelInfo::Name() const {
  return ReadString(api_, [&](char* out, size_t* size) { return api_.KernelInfo_GetNodeName(info_, out, size); })
      .value_or("");
}

std::optional<int64_t> KernelInfo::Int(const char* attribute) const {
  int64_t value = 0;
  if (!FromOrt(api_, api_.KernelInfoGetAttribute_int64(info_, attribute, &value)).ok()) return std::nullopt;
  return value;
}

std::optional<float> KernelInfo::Float(const char* attribute) const {
  float value = 0;
  if (!FromOrt(api_, api_.KernelInfoGetAttribute_float(info_, attribute, &value)).ok()) return std::nullopt;
  return value;
}

float NodeInfo::Softcap() const {
  const float softcap = Float("softcap").value_or(0);
  return softcap > 0 ? softcap : 0;
}

std::optional<std::string> KernelInfo::String(const char* attribute) const {
  return ReadString(
      api_, [&](char* out, size_t* size) { return api_.KernelInfoGetAttribute_string(info_, attribute, out, size); });
}

size_t KernelInfo::InputCount() const {
  size_t count = 0;
  return FromOrt(api_, api_.KernelInfo_GetInputCount(info_, &count)).ok() ? count : 0;
}

size_t KernelInfo::OutputCount() const {
  size_t count = 0;
  return FromOrt(api_, api_.KernelInfo_GetOutputCount(info_, &count)).ok() ? count : 0;
}

bool KernelInfo::HasInput(size_t index) const {
  return index < InputCount() &&
         !ReadString(
              api_, [&](char* out, size_t* size) { return api_.KernelInfo_GetInputName(info_, index, out, size); })
              .value_or("")
              .empty();
}

std::string KernelInfo::OutputName(size_t index) const {
  if (index >= OutputCount()) return "";
  return ReadString(api_,
                    [&](char* out, size_t* size) { return api_.KernelInfo_GetOutputName(info_, index, out, size); })
      .value_or("");
}

ONNXTensorElementDataType KernelInfo::InputType(size_t index) const {
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  OrtTypeInfo* info = nullptr;
  if (!HasInput(index) || !FromOrt(api_, api_.KernelInfo_GetInputTypeInfo(info_, index, &info)).ok()) return type;
  const OrtTensorTypeAndShapeInfo* tensor = nullptr;
  if (FromOrt(api_, api_.CastTypeInfoToTensorInfo(info, &tensor)).ok() && tensor != nullptr &&
      !FromOrt(api_, api_.GetTensorElementType(tensor, &type)).ok())
    type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  api_.ReleaseTypeInfo(info);
  return type;
}

void KernelInfo::LogInfo(const std::string& message) const {
  const OrtLogger* logger = nullptr;
  if (!FromOrt(api_, api_.KernelInfo_GetLogger(info_, &logger)).ok() || logger == nullptr) return;
  // A log line that cannot be written is no reason to fail a session.
  static_cast<void>(FromOrt(api_, api_.Logger_LogMessage(logger, ORT_LOGGING_LEVEL_INFO, message.c_str(), "kvshare", 0,
                                                         "RegisterCustomOps")));
}

Status Describe(const OrtApi& api, OrtValue* value, Tensor* tensor) {
  tensor->value = value;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  KVSHARE_RETURN_IF_ERROR(FromOrt(api, api.GetTensorTypeAndShape(value, &info)));
  Status status = FromOrt(api, api.GetTensorElementType(info, &tensor->type));
  if (status.ok()) status = FromOrt(api, api.GetDimensionsCount(info, &tensor->rank));
  if (status.ok() && tensor->rank > kMaxRank)
    status = Status::InvalidInput(fmt::format("a tensor of rank {}; needs at most {}", tensor->rank, kMaxRank));
  if (status.ok()) status = FromOrt(api, api.GetDimensions(info, tensor->dims.data(), tensor->rank));
  api.ReleaseTensorTypeAndShapeInfo(info);
  KVSHARE_RETURN_IF_ERROR(status);
  return FromOrt(api, api.GetTensorMutableData(value, &tensor->data));
}

Result<Tensor> CallContext::Input(size_t index) const {
  const OrtValue* value = nullptr;
  KVSHARE_RETURN_IF_ERROR(FromOrt(api_, api_.KernelContext_GetInput(context_, index, &value)));
  Tensor tensor;
  // The C API has one accessor for data, and it wants a mutable value; inputs are only read.
  if (value != nullptr) KVSHARE_RETURN_IF_ERROR(Describe(api_, const_cast<OrtValue*>(value), &tensor));
  return tensor;
}

Result<Tensor> CallContext::Output(size_t index, std::span<const int64_t> dims) const {
  OrtValue* value = nullptr;
  KVSHARE_RETURN_IF_ERROR(
      FromOrt(api_, api_.KernelContext_GetOutput(context_, index, dims.data(), dims.size(), &value)));
  Tensor tensor;
  if (value != nullptr) KVSHARE_RETURN_IF_ERROR(Describe(api_, value, &tensor));
  return tensor;
}

Result<void*> CallContext::Stream() const {
  void* stream = nullptr;
  KVSHARE_RETURN_IF_ERROR(FromOrt(api_, api_.KernelContext_GetGPUComputeStream(context_, &stream)));
  return stream;
}

ParallelFor CallContext::Parallel() {
  return {this, [](void* self, int64_t n, void (*body)(void*, int64_t), void* arg) {
            struct Job {
              void (*body)(void*, int64_t);
              void* arg;
            } job = {body, arg};
            const auto run = [](void* data, size_t i) {
              const auto* j = static_cast<const Job*>(data);
              TsanObserve(data);
              j->body(j->arg, static_cast<int64_t>(i));
              TsanPublish(data);
            };
            TsanPublish(&job);
            const auto* context = static_cast<const CallContext*>(self);
            OrtStatus* status = n <= 1 ? nullptr
                                       : context->api_.KernelContext_ParallelFor(context->context_, run,
                                                                                 static_cast<size_t>(n), 0, &job);
            TsanObserve(&job);
            if (n > 1 && status == nullptr) return;
            // ORT reports a failure before it starts any part of the loop.
            if (status != nullptr) context->api_.ReleaseStatus(status);
            for (int64_t i = 0; i < n; ++i) body(arg, i);
          }};
}

}  // namespace kvshare::ort
