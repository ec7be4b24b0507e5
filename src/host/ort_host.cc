#include "host/ort_host.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <onnxruntime_c_api.h>

#include <algorithm>
#include <optional>
#include <string_view>

#include "host/find_ort.h"
#include "kvshare/provider.h"
#include "ort_types/element_type.h"

namespace kvshare::host {
namespace {

// The C API of OrtCustomOp.version = 18. All that the host calls is older,
constexpr uint32_t kApiVersion = 18;
// but for execution providers: the version that kvshare's own needs.
constexpr uint32_t kProviderApiVersion = 24;

template <typename T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

// The code and text of a failed call; releases `status`.
struct OrtError {
  OrtErrorCode code = ORT_OK;
  std::string text;
};

std::optional<OrtError> Taken(const OrtApi& api, OrtStatus* status) {
  if (status == nullptr) return std::nullopt;
  OrtError error{api.GetErrorCode(status), api.GetErrorMessage(status)};
  api.ReleaseStatus(status);
  for (char& c : error.text) {
    if (c == '\n') c = ' ';
  }
  return error;
}

Status Refusal(const OrtApi& api, OrtStatus* status, const std::string& what) {
  const auto error = Taken(api, status);
  if (!error) return {};
  const bool no_model =
      error->code == ORT_NO_SUCHFILE || error->code == ORT_INVALID_PROTOBUF || error->code == ORT_NO_MODEL;
  return {no_model ? StatusCode::kInvalidInput : StatusCode::kRefused, fmt::format("{}: {}", what, error->text)};
}

// The refusal of a session, with a hint at the import condition where that is the cause.
Status WhyNoSession(Status refusal, const SessionSetup& setup) {
  const std::string& text = refusal.message();
  if (setup.library.empty() || setup.imports_microsoft || text.find("com.microsoft:") == std::string::npos ||
      text.find("is not a registered function/op") == std::string::npos)
    return refusal;
  return Status::Refused(fmt::format(
      "{}; the model does not import com.microsoft, so ONNX Runtime's optimizer may not use that domain's ops "
      "beside a replaced GroupQueryAttention; needs kvshare.drop_in=attention, or the import (docs/ops.md)",
      text));
}

ONNXTensorElementDataType OnnxType(DType type) {
  switch (type) {
    case DType::kF32: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    case DType::kF16: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    case DType::kBF16: return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
    case DType::kF64: return ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE;
    case DType::kBool: return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
    case DType::kI32: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    case DType::kI64: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    case DType::kI8: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
    case DType::kF8E4M3: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FN;
    case DType::kI4: return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
  }
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
}

// A uint8 is a pair of kI4 codes here: what caches make of it, and all the same where it only passes through.
std::optional<DType> HostType(ONNXTensorElementDataType type) {
  return type == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 ? DType::kI4 : DTypeOf(type);
}

// The type and shape of a tensor; the fields of `info` beside the name.
Status Describe(const OrtApi& api, const OrtTensorTypeAndShapeInfo* shape, ValueInfo& info) {
  const std::string what = fmt::format("'{}'", info.name);
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  KVSHARE_RETURN_IF_ERROR(Refusal(api, api.GetTensorElementType(shape, &type), what));
  const auto known = HostType(type);
  if (!known) {
    return Status::Refused(
        fmt::format("{} has ONNX element type {}; needs f32, f16, bf16, f64, int32, int64, int8, uint8, float8e4m3fn "
                    "or bool",
                    what, static_cast<int>(type)));
  }
  info.type = *known;
  size_t rank = 0;
  KVSHARE_RETURN_IF_ERROR(Refusal(api, api.GetDimensionsCount(shape, &rank), what));
  info.shape.resize(rank);
  KVSHARE_RETURN_IF_ERROR(Refusal(api, api.GetDimensions(shape, info.shape.data(), rank), what));
  std::vector<const char*> symbols(rank);
  KVSHARE_RETURN_IF_ERROR(Refusal(api, api.GetSymbolicDimensions(shape, symbols.data(), rank), what));
  info.symbols.assign(symbols.begin(), symbols.end());
  return {};
}

using CountOf = OrtStatusPtr(ORT_API_CALL*)(const OrtSession*, size_t*);
using NameAt = OrtStatusPtr(ORT_API_CALL*)(const OrtSession*, size_t, OrtAllocator*, char**);
using TypeAt = OrtStatusPtr(ORT_API_CALL*)(const OrtSession*, size_t, OrtTypeInfo**);

Result<std::vector<ValueInfo>> DescribeAll(const OrtApi& api, const OrtSession* session, CountOf count_of,
                                           NameAt name_at, TypeAt type_at) {
  OrtAllocator* allocator = nullptr;
  KVSHARE_RETURN_IF_ERROR(Refusal(api, api.GetAllocatorWithDefaultOptions(&allocator), "allocator"));
  size_t count = 0;
  KVSHARE_RETURN_IF_ERROR(Refusal(api, count_of(session, &count), "session"));
  std::vector<ValueInfo> values(count);
  for (size_t i = 0; i < count; ++i) {
    char* name = nullptr;
    KVSHARE_RETURN_IF_ERROR(Refusal(api, name_at(session, i, allocator, &name), "session"));
    values[i].name = name;
    KVSHARE_RETURN_IF_ERROR(Refusal(api, api.AllocatorFree(allocator, name), "session"));
    OrtTypeInfo* raw = nullptr;
    KVSHARE_RETURN_IF_ERROR(Refusal(api, type_at(session, i, &raw), values[i].name));
    const Owned<OrtTypeInfo> type(raw, api.ReleaseTypeInfo);
    const OrtTensorTypeAndShapeInfo* shape = nullptr;
    KVSHARE_RETURN_IF_ERROR(Refusal(api, api.CastTypeInfoToTensorInfo(type.get(), &shape), values[i].name));
    if (shape == nullptr) return Status::Refused(fmt::format("'{}' is not a tensor", values[i].name));
    KVSHARE_RETURN_IF_ERROR(Describe(api, shape, values[i]));
  }
  return values;
}

Result<Tensor> CopyOut(const OrtApi& api, OrtValue* value, const std::string& name) {
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  KVSHARE_RETURN_IF_ERROR(Refusal(api, api.GetTensorTypeAndShape(value, &raw), name));
  const Owned<OrtTensorTypeAndShapeInfo> shape(raw, api.ReleaseTensorTypeAndShapeInfo);
  ValueInfo info{.name = name, .type = DType::kF32, .shape = {}, .symbols = {}};
  KVSHARE_RETURN_IF_ERROR(Describe(api, shape.get(), info));
  void* data = nullptr;
  KVSHARE_RETURN_IF_ERROR(Refusal(api, api.GetTensorMutableData(value, &data), name));
  Tensor tensor = Tensor::Zeros(info.type, info.shape);
  if (!tensor.data.empty()) std::memcpy(tensor.data.data(), data, tensor.data.size());
  return tensor;
}

}  // namespace

Result<std::shared_ptr<const OrtHost>> OrtHost::Open(const std::string& file) {
  void* library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (library == nullptr) return Status::InvalidInput(fmt::format("cannot load ONNX Runtime: {}", dlerror()));
  const auto get_base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(library, "OrtGetApiBase"));
  if (get_base == nullptr) {
    return Status::InvalidInput(fmt::format("'{}' is not ONNX Runtime: it exports no OrtGetApiBase", file));
  }
  auto host = std::shared_ptr<OrtHost>(new OrtHost);
  host->file_ = file;
  host->version_ = get_base()->GetVersionString();
  host->get_api_ = get_base()->GetApi;
  host->api_ = host->get_api_(kApiVersion);
  if (host->api_ == nullptr) {
    return Status::InvalidInput(
        fmt::format("'{}' is ONNX Runtime {}; needs 1.{} or later", file, host->version_, kApiVersion));
  }
  KVSHARE_RETURN_IF_ERROR(
      Refusal(host->api(), host->api().CreateEnv(ORT_LOGGING_LEVEL_FATAL, "kvshare", &host->env_), file));
  return std::shared_ptr<const OrtHost>(std::move(host));
}

Status OrtHost::RegisterProviders(const OrtApi& api, const std::string& file) const {
  const std::lock_guard lock(mutex_);
  if (providers_.contains(file)) return {};
  KVSHARE_RETURN_IF_ERROR(
      Refusal(api, api.RegisterExecutionProviderLibrary(env_, file.c_str(), file.c_str()), fmt::format("'{}'", file)));
  providers_.insert(file);
  return {};
}

Status OrtHost::AppendProvider(const std::string& file, OrtSessionOptions* options) const {
  const OrtApi* api = get_api_(kProviderApiVersion);
  if (api == nullptr)
    return Status::Refused(
        fmt::format("ONNX Runtime {} takes no execution providers from libraries; option 'via' = 'ep' needs 1.{} "
                    "or later",
                    version_, kProviderApiVersion));
  KVSHARE_RETURN_IF_ERROR(RegisterProviders(*api, file));
  const OrtEpDevice* const* devices = nullptr;
  size_t count = 0;
  KVSHARE_RETURN_IF_ERROR(Refusal(*api, api->GetEpDevices(env_, &devices, &count), "execution providers"));
  const auto* const found = std::find_if(devices, devices + count, [&](const OrtEpDevice* device) {
    return std::string_view(api->EpDevice_EpName(device)) == kProviderName;
  });
  if (found == devices + count) return Status::Refused(fmt::format("'{}' has no {}", file, kProviderName));
  return Refusal(*api, api->SessionOptionsAppendExecutionProvider_V2(options, env_, found, 1, nullptr, nullptr, 0),
                 std::string(kProviderName));
}

OrtHost::~OrtHost() {
  if (env_ != nullptr) api_->ReleaseEnv(env_);
}

Result<Session> Session::Create(std::shared_ptr<const OrtHost> ort, const std::string& model_path,
                                const SessionSetup& setup) {
  const OrtApi& api = ort->api();
  OrtSessionOptions* raw = nullptr;
  KVSHARE_RETURN_IF_ERROR(Refusal(api, api.CreateSessionOptions(&raw), "session options"));
  const Owned<OrtSessionOptions> options(raw, api.ReleaseSessionOptions);
  // What ONNX Runtime logs of a failure, the failure itself says.
  KVSHARE_RETURN_IF_ERROR(Refusal(api, api.SetSessionLogSeverityLevel(raw, ORT_LOGGING_LEVEL_FATAL), "log level"));
  for (const auto& [key, value] : setup.entries) {
    KVSHARE_RETURN_IF_ERROR(Refusal(api, api.AddSessionConfigEntry(raw, key.c_str(), value.c_str()),
                                    fmt::format("session entry '{}'", key)));
  }
  if (!setup.provider.empty()) KVSHARE_RETURN_IF_ERROR(ort->AppendProvider(setup.provider, raw));
  if (!setup.library.empty()) {
    KVSHARE_RETURN_IF_ERROR(
        Refusal(api, api.RegisterCustomOpsLibrary_V2(raw, setup.library.c_str()), fmt::format("'{}'", setup.library)));
  }
  auto session = Make(std::move(ort), model_path, raw, setup.model);
  if (!session.ok()) return WhyNoSession(session.status(), setup);
  return session;
}

Result<Session> Session::Make(std::shared_ptr<const OrtHost> ort, const std::string& model_path,
                              const OrtSessionOptions* options, const std::string& model) {
  const OrtApi& api = ort->api();
  Session session;
  session.ort_ = std::move(ort);
  const OrtEnv* env = session.ort_->env();
  OrtStatus* made = model.empty()
                        ? api.CreateSession(env, model_path.c_str(), options, &session.session_)
                        : api.CreateSessionFromArray(env, model.data(), model.size(), options, &session.session_);
  KVSHARE_RETURN_IF_ERROR(Refusal(api, made, fmt::format("'{}'", model_path)));
  KVSHARE_ASSIGN_OR_RETURN(session.signature_.inputs,
                           DescribeAll(api, session.session_, api.SessionGetInputCount, api.SessionGetInputName,
                                       api.SessionGetInputTypeInfo));
  KVSHARE_ASSIGN_OR_RETURN(session.signature_.outputs,
                           DescribeAll(api, session.session_, api.SessionGetOutputCount, api.SessionGetOutputName,
                                       api.SessionGetOutputTypeInfo));
  return session;
}

Result<std::unique_ptr<Runner>> OrtHost::Load(const std::string& model_path, const SessionSetup& setup) const {
  KVSHARE_ASSIGN_OR_RETURN(Session session, Session::Create(shared_from_this(), model_path, setup));
  return std::unique_ptr<Runner>(std::make_unique<Session>(std::move(session)));
}

Session::Session(Session&& other) noexcept
    : ort_(std::move(other.ort_)),
      session_(std::exchange(other.session_, nullptr)),
      signature_(std::move(other.signature_)) {}

Session::~Session() {
  if (session_ != nullptr) ort_->api().ReleaseSession(session_);
}

Result<NamedTensors> Session::Run(const NamedTensors& feeds) const {
  const OrtApi& api = ort_->api();
  OrtMemoryInfo* raw_memory = nullptr;
  KVSHARE_RETURN_IF_ERROR(
      Refusal(api, api.CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &raw_memory), "memory"));
  const Owned<OrtMemoryInfo> memory(raw_memory, api.ReleaseMemoryInfo);

  std::vector<Owned<OrtValue>> owned;
  std::vector<const OrtValue*> values;
  std::vector<const char*> input_names;
  for (const ValueInfo& input : signature_.inputs) {
    const auto feed = feeds.find(input.name);
    if (feed == feeds.end())
      return Status::InvalidInput(fmt::format("the model's input '{}' has no value", input.name));
    const Tensor& tensor = feed->second;
    // ONNX Runtime's C API takes inputs as mutable memory and does not write them. An empty vector has no address.
    static std::byte nothing[1];
    void* data = tensor.data.empty() ? nothing : const_cast<std::byte*>(tensor.data.data());
    OrtValue* value = nullptr;
    KVSHARE_RETURN_IF_ERROR(
        Refusal(api,
                api.CreateTensorWithDataAsOrtValue(memory.get(), data, tensor.data.size(), tensor.shape.data(),
                                                   tensor.shape.size(), OnnxType(tensor.type), &value),
                input.name));
    owned.emplace_back(value, api.ReleaseValue);
    values.push_back(value);
    input_names.push_back(input.name.c_str());
  }
  std::vector<const char*> output_names;
  for (const ValueInfo& output : signature_.outputs) output_names.push_back(output.name.c_str());
  std::vector<OrtValue*> results(signature_.outputs.size(), nullptr);
  KVSHARE_RETURN_IF_ERROR(Refusal(api,
                                  api.Run(session_, nullptr, input_names.data(), values.data(), values.size(),
                                          output_names.data(), output_names.size(), results.data()),
                                  "run"));
  std::vector<Owned<OrtValue>> owned_results;
  for (OrtValue* result : results) owned_results.emplace_back(result, api.ReleaseValue);
  NamedTensors outputs;
  for (size_t i = 0; i < results.size(); ++i) {
    KVSHARE_ASSIGN_OR_RETURN(outputs[signature_.outputs[i].name], CopyOut(api, results[i], signature_.outputs[i].name));
  }
  return outputs;
}

}  // namespace kvshare::host

namespace kvshare {

Result<std::shared_ptr<const Runtime>> OpenOnnxRuntime(const std::string& path, const std::string& near) {
  KVSHARE_ASSIGN_OR_RETURN(const std::string file, host::FindOrt(path, near));
  KVSHARE_ASSIGN_OR_RETURN(std::shared_ptr<const host::OrtHost> opened, host::OrtHost::Open(file));
  return std::shared_ptr<const Runtime>(std::move(opened));
}

}  // namespace kvshare
