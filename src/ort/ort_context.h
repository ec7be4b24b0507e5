// A thin wrapper over the part of ONNX Runtime's C API (version 18) that a kernel needs. Nothing here throws.
#pragma once

#include <onnxruntime_c_api.h>

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "kvshare/attend.h"
#include "kvshare/status.h"
#include "ort_types/element_type.h"

namespace kvshare::ort {

inline constexpr uint32_t kApiVersion = 18;
inline constexpr size_t kMaxRank = 8;

// Takes over `status`; null is success.
Status FromOrt(const OrtApi& api, OrtStatus* status);
// kInvalidInput -> ORT_INVALID_ARGUMENT, kRefused -> ORT_NOT_IMPLEMENTED, kInternal -> ORT_FAIL; success is null.
OrtStatus* ToOrt(const OrtApi& api, const Status& status);
// Runs `body`, a callable returning Status; whatever it throws becomes a status too: nothing crosses a C border. What
// was thrown may be std::bad_alloc, so that no more memory is asked for.
template <typename Body>
OrtStatus* Guarded(const OrtApi& api, Body body) {
  try {
    return ToOrt(api, body());
  } catch (const std::exception& e) {
    return api.CreateStatus(ORT_FAIL, e.what());
  } catch (...) {
    return api.CreateStatus(ORT_FAIL, "unknown exception");
  }
}

// "f32", "int8", ...: the spelling of error messages.
const char* NameOf(ONNXTensorElementDataType type);

// An input or output tensor of one call. Absent optional ones convert to false.
struct Tensor {
  OrtValue* value = nullptr;
  void* data = nullptr;
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  size_t rank = 0;
  std::array<int64_t, kMaxRank> dims = {};

  explicit operator bool() const { return value != nullptr; }
  // The core's type; f32 for one that the core does not know and no op takes.
  DType CoreType() const { return DTypeOf(type).value_or(DType::kF32); }
  std::span<const int64_t> Dims() const { return {dims.data(), rank}; }
  int64_t Count() const;
  // "1x4x512x256"; "scalar" for rank 0.
  std::string ShapeText() const;
};

// What a kernel is made from: its node's name, attributes, inputs and outputs.
class NodeInfo {
 public:
  virtual ~NodeInfo() = default;

  virtual std::string Name() const = 0;
  virtual std::optional<int64_t> Int(const char* attribute) const = 0;
  virtual std::optional<float> Float(const char* attribute) const = 0;
  virtual std::optional<std::string> String(const char* attribute) const = 0;
  virtual size_t InputCount() const = 0;
  virtual size_t OutputCount() const = 0;
  // Whether the node names this optional input or output.
  virtual bool HasInput(size_t index) const = 0;
  virtual bool HasOutput(size_t index) const = 0;
  // Undefined where the node lacks that input.
  virtual ONNXTensorElementDataType InputType(size_t index) const = 0;

  // A switch as ONNX Runtime reads it: 1 is on, and anything else is off.
  bool IsOn(const char* attribute) const { return Int(attribute) == 1; }
  // The attribute softcap; 0, which means no cap, for values of 0 or less, as in ONNX Runtime.
  float Softcap() const;
};

// The node as ORT describes it when it creates the kernel.
class KernelInfo final : public NodeInfo {
 public:
  KernelInfo(const OrtApi& api, const OrtKernelInfo* info) : api_(api), info_(info) {}

  std::string Name() const override;
  std::optional<int64_t> Int(const char* attribute) const override;
  std::optional<float> Float(const char* attribute) const override;
  std::optional<std::string> String(const char* attribute) const override;
  size_t InputCount() const override;
  size_t OutputCount() const override;
  bool HasInput(size_t index) const override;
  bool HasOutput(size_t index) const override { return !OutputName(index).empty(); }
  ONNXTensorElementDataType InputType(size_t index) const override;
  // "" where the node does not name that output.
  std::string OutputName(size_t index) const;
  void LogInfo(const std::string& message) const;

 private:
  const OrtApi& api_;
  const OrtKernelInfo* info_;
};

// One call's inputs, outputs and threads.
class CallContext {
 public:
  CallContext(const OrtApi& api, OrtKernelContext* context) : api_(api), context_(context) {}
  virtual ~CallContext() = default;

  // Absent where the node lacks it.
  virtual Result<Tensor> Input(size_t index) const;
  // The first `count` of them; later ones are absent.
  template <size_t kMost>
  Result<std::array<Tensor, kMost>> Inputs(size_t count) const {
    std::array<Tensor, kMost> inputs;
    for (size_t i = 0; i < count; ++i) {
      KVSHARE_ASSIGN_OR_RETURN(inputs[i], Input(i));
    }
    return inputs;
  }
  // Allocates it, or finds the caller's bound buffer; absent where the node does not name it.
  virtual Result<Tensor> Output(size_t index, std::span<const int64_t> dims) const;
  // ORT's own thread pool; valid as long as this context.
  ParallelFor Parallel();
  // The device queue of the provider that runs the node; null on the CPU.
  Result<void*> Stream() const;

  const OrtApi& api() const { return api_; }
  OrtKernelContext* ort() const { return context_; }

 private:
  const OrtApi& api_;
  OrtKernelContext* context_;
};

// Fills type and dims of `tensor` from its value, and its data pointer.
Status Describe(const OrtApi& api, OrtValue* value, Tensor* tensor);

}  // namespace kvshare::ort
