#include "ort/custom_op.h"

#include <fmt/format.h>

#include <atomic>
#include <mutex>
#include <utility>
#include <vector>

#include "ort/op_types.h"

namespace kvshare::ort {
namespace {

const CustomOp& Self(const OrtCustomOp* op) { return *static_cast<const CustomOp*>(op); }

ONNXTensorElementDataType TypeOf(const OpBinding& binding, SlotType type) {
  if (type == SlotType::kT) return binding.t;
  return type == SlotType::kCache ? binding.cache : FixedType(type);
}

ONNXTensorElementDataType InputTypeOf(const CustomOp& op, size_t i) {
  if (op.AnyTypes()) return i == 0 ? op.binding.t : ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  return TypeOf(op.binding, op.row.inputs[i].type);
}

// An op that only refuses has outputs of a likely type all the same: else ORT reports their types before the refusal.
ONNXTensorElementDataType OutputTypeOf(const CustomOp& op, size_t i) {
  if (!op.AnyTypes()) return TypeOf(op.binding, op.row.outputs[i].type);
  return op.binding.t != ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED ? op.binding.t : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

OrtCustomOpInputOutputCharacteristic Need(const Slot& slot) {
  return slot.required ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
}

// Default is the provider's own memory.
OrtMemType MemoryTypeOf(const CustomOp& op, size_t i) {
  const Backend& backend = *op.binding.backend;
  return backend.MemoryOf(op.row.inputs[i]) == backend.memory ? OrtMemTypeDefault : OrtMemTypeCPUInput;
}

struct Announcement {
  std::atomic<bool> pending = false;
  std::mutex mutex;
  std::string line;
};

Announcement& TheAnnouncement() {
  static Announcement announcement;
  return announcement;
}

void Announce(const KernelInfo& node) {
  Announcement& announcement = TheAnnouncement();
  if (!announcement.pending.exchange(false)) return;
  const std::lock_guard lock(announcement.mutex);
  node.LogInfo(announcement.line);
}

// Why a node fits no kernel: names the first input whose type is the reason.
Status ExplainTypes(const CustomOp& op, const NodeInfo& node) {
  KVSHARE_RETURN_IF_ERROR(BindTypes(op.row, node, op.binding.config, *op.binding.backend).status());
  return Status::InvalidInput(fmt::format("{} '{}': no kernel for these types", op.row.op, node.Name()));
}

// The kernel object that ORT holds: ours, and the API of the ORT that made it.
struct HostedKernel {
  const OrtApi& api;
  std::unique_ptr<Kernel> kernel;
};

OrtStatus* CreateKernel(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
  *kernel = nullptr;
  return Guarded(*api, [&]() -> Status {
    const KernelInfo node(*api, info);
    Announce(node);
    if (Self(op).AnyTypes()) return ExplainTypes(Self(op), node);
    KVSHARE_ASSIGN_OR_RETURN(auto made, Self(op).row.create(Self(op).binding, node));
    *kernel = new HostedKernel{*api, std::move(made)};
    return {};
  });
}

OrtStatus* RunKernel(void* hosted, OrtKernelContext* context) {
  const auto& [api, kernel] = *static_cast<const HostedKernel*>(hosted);
  return Guarded(api, [&]() -> Status {
    CallContext call(api, context);
    return kernel->Run(call);
  });
}

// From 1.28 an output that the node lacks may be set; from 1.24 an absent middle input may be asked for.
constexpr int kInferAllMinor = 28;
constexpr int kInferFirstMinor = 24;

OrtStatus* InferShapes(const OrtCustomOp* op, OrtShapeInferContext* context) {
  return Guarded(Self(op).api, [&]() -> Status {
    const bool all = Self(op).binding.config.host.AtLeast(1, kInferAllMinor);
    return Self(op).row.infer(InferContext(Self(op).api, context, all));
  });
}

// The extents and symbols of an input, as far as the graph knows them.
struct InputShape {
  bool known = false;
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  std::vector<int64_t> dims;
  std::vector<std::string> symbols;
};

InputShape ShapeOf(const OrtApi& api, OrtShapeInferContext* context, size_t input) {
  InputShape shape;
  size_t count = 0;
  OrtTensorTypeAndShapeInfo* info = nullptr;  // owned by ORT
  if (!FromOrt(api, api.ShapeInferContext_GetInputCount(context, &count)).ok() || input >= count ||
      !FromOrt(api, api.ShapeInferContext_GetInputTypeShape(context, input, &info)).ok() || info == nullptr)
    return shape;
  size_t rank = 0;
  if (!FromOrt(api, api.GetTensorElementType(info, &shape.type)).ok() ||
      !FromOrt(api, api.GetDimensionsCount(info, &rank)).ok() || rank == 0)
    return shape;
  shape.dims.resize(rank);
  std::vector<const char*> symbols(rank, nullptr);
  if (!FromOrt(api, api.GetDimensions(info, shape.dims.data(), rank)).ok() ||
      !FromOrt(api, api.GetSymbolicDimensions(info, symbols.data(), rank)).ok())
    return shape;
  for (const char* symbol : symbols) shape.symbols.emplace_back(symbol != nullptr ? symbol : "");
  shape.known = true;
  return shape;
}

}  // namespace

CustomOp::CustomOp(const OrtApi& host, const OpRow& op_row, const OpBinding& op_binding)
    : OrtCustomOp{}, api(host), row(op_row), binding(op_binding) {
  version = kApiVersion;
  GetName = [](const OrtCustomOp* op) { return Self(op).row.op; };
  GetExecutionProviderType = [](const OrtCustomOp* op) { return Self(op).binding.backend->provider; };
  GetInputTypeCount = [](const OrtCustomOp* op) { return Self(op).row.inputs.size(); };
  GetInputType = [](const OrtCustomOp* op, size_t i) { return InputTypeOf(Self(op), i); };
  GetInputCharacteristic = [](const OrtCustomOp* op, size_t i) { return Need(Self(op).row.inputs[i]); };
  GetInputMemoryType = [](const OrtCustomOp* op, size_t i) { return MemoryTypeOf(Self(op), i); };
  GetOutputTypeCount = [](const OrtCustomOp* op) { return Self(op).row.outputs.size(); };
  GetOutputType = [](const OrtCustomOp* op, size_t i) { return OutputTypeOf(Self(op), i); };
  GetOutputCharacteristic = [](const OrtCustomOp* op, size_t i) { return Need(Self(op).row.outputs[i]); };
  GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
  GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  CreateKernelV2 = ort::CreateKernel;
  KernelComputeV2 = RunKernel;
  KernelDestroy = [](void* kernel) { delete static_cast<HostedKernel*>(kernel); };
  if (binding.config.host.AtLeast(1, kInferFirstMinor)) InferOutputShapeFn = InferShapes;
  GetStartVersion = [](const OrtCustomOp*) { return 1; };
  GetEndVersion = [](const OrtCustomOp*) { return INT32_MAX; };
}

void AnnounceAtFirstKernel(std::string line) {
  Announcement& announcement = TheAnnouncement();
  const std::lock_guard lock(announcement.mutex);
  announcement.line = std::move(line);
  announcement.pending = true;
}

int InferContext::Rank(size_t input) const {
  const InputShape shape = ShapeOf(api_, context_, input);
  return shape.known ? static_cast<int>(shape.dims.size()) : -1;
}

int64_t InferContext::Dim(size_t input, size_t axis) const {
  const InputShape shape = ShapeOf(api_, context_, input);
  return shape.known && axis < shape.dims.size() && shape.dims[axis] >= 0 ? shape.dims[axis] : -1;
}

int64_t InferContext::Int(const char* attribute, int64_t absent) const {
  const OrtOpAttr* attr = nullptr;
  int64_t value = 0;
  size_t size = 0;
  if (!FromOrt(api_, api_.ShapeInferContext_GetAttribute(context_, attribute, &attr)).ok() || attr == nullptr ||
      !FromOrt(api_, api_.ReadOpAttr(attr, ORT_OP_ATTR_INT, &value, sizeof(value), &size)).ok())
    return absent;
  return value;
}

ONNXTensorElementDataType InferContext::Type(size_t input) const { return ShapeOf(api_, context_, input).type; }

Status InferContext::SetOutput(size_t output, ONNXTensorElementDataType type, std::span<const Extent> extents) const {
  std::vector<int64_t> dims;
  std::vector<std::string> symbols;
  for (const Extent& extent : extents) {
    dims.push_back(extent.value);
    symbols.emplace_back();
    if (extent.input < 0) continue;
    const InputShape shape = ShapeOf(api_, context_, static_cast<size_t>(extent.input));
    if (!shape.known || static_cast<size_t>(extent.axis) >= shape.dims.size()) continue;
    dims.back() = shape.dims[static_cast<size_t>(extent.axis)];
    symbols.back() = shape.symbols[static_cast<size_t>(extent.axis)];
  }
  // A nameless unknown extent would reach ORT as the number -1, and every run would warn that the real one differs.
  static std::atomic<int64_t> unknowns{0};
  for (size_t i = 0; i < dims.size(); ++i)
    if (dims[i] < 0 && symbols[i].empty()) symbols[i] = fmt::format("kvshare_unknown_{}", unknowns.fetch_add(1));
  std::vector<const char*> names;
  for (const std::string& symbol : symbols) names.push_back(symbol.c_str());
  OrtTensorTypeAndShapeInfo* info = nullptr;
  KVSHARE_RETURN_IF_ERROR(FromOrt(api_, api_.CreateTensorTypeAndShapeInfo(&info)));
  Status status = FromOrt(api_, api_.SetTensorElementType(info, type));
  if (status.ok()) status = FromOrt(api_, api_.SetDimensions(info, dims.data(), dims.size()));
  if (status.ok()) status = FromOrt(api_, api_.SetSymbolicDimensions(info, names.data(), names.size()));
  if (status.ok()) status = FromOrt(api_, api_.ShapeInferContext_SetOutputTypeShape(context_, output, info));
  api_.ReleaseTensorTypeAndShapeInfo(info);
  return status;
}

}  // namespace kvshare::ort
