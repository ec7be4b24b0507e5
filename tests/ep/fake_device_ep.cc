// A plugin execution provider that stands for a device's: it takes every Neg of float, and nothing else.
#include <onnxruntime_c_api.h>

#include <cstring>
#include <vector>

namespace {

const OrtApi* api = nullptr;
constexpr uint32_t kVersion = 24;
constexpr const char* kName = "FakeDeviceExecutionProvider";

// What a call gives back where ONNX Runtime refuses.
#define RETURN_IF_REFUSED(call)                      \
  do {                                               \
    if (OrtStatus* refused = (call)) return refused; \
  } while (false)

struct Negation : OrtNodeComputeInfo {
  Negation() : OrtNodeComputeInfo{} {
    ort_version_supported = kVersion;
    CreateState = [](OrtNodeComputeInfo* self, OrtNodeComputeContext*, void** state) -> OrtStatus* {
      *state = self;
      return nullptr;
    };
    ReleaseState = [](OrtNodeComputeInfo*, void*) {};
    Compute = Run;
  }

  static OrtStatus* ORT_API_CALL Run(OrtNodeComputeInfo*, void*, OrtKernelContext* context) {
    const OrtValue* input = nullptr;
    OrtTensorTypeAndShapeInfo* info = nullptr;
    RETURN_IF_REFUSED(api->KernelContext_GetInput(context, 0, &input));
    RETURN_IF_REFUSED(api->GetTensorTypeAndShape(input, &info));
    size_t rank = 0, count = 0;
    RETURN_IF_REFUSED(api->GetDimensionsCount(info, &rank));
    RETURN_IF_REFUSED(api->GetTensorShapeElementCount(info, &count));
    std::vector<int64_t> dims(rank);
    RETURN_IF_REFUSED(api->GetDimensions(info, dims.data(), rank));
    api->ReleaseTensorTypeAndShapeInfo(info);
    OrtValue* output = nullptr;
    RETURN_IF_REFUSED(api->KernelContext_GetOutput(context, 0, dims.data(), rank, &output));
    const void* in = nullptr;
    void* out = nullptr;
    RETURN_IF_REFUSED(api->GetTensorData(input, &in));
    RETURN_IF_REFUSED(api->GetTensorMutableData(output, &out));
    for (size_t i = 0; i < count; ++i) static_cast<float*>(out)[i] = -static_cast<const float*>(in)[i];
    return nullptr;
  }
};

struct Provider : OrtEp {
  Provider() : OrtEp{} {
    ort_version_supported = kVersion;
    GetName = [](const OrtEp*) noexcept { return kName; };
    GetCapability = [](OrtEp*, const OrtGraph* graph, OrtEpGraphSupportInfo* support) noexcept -> OrtStatus* {
      size_t count = 0;
      RETURN_IF_REFUSED(api->Graph_GetNumNodes(graph, &count));
      std::vector<const OrtNode*> nodes(count);
      RETURN_IF_REFUSED(api->Graph_GetNodes(graph, nodes.data(), count));
      for (const OrtNode* node : nodes) {
        const char* op = nullptr;
        RETURN_IF_REFUSED(api->Node_GetOperatorType(node, &op));
        OrtNodeFusionOptions options{};
        options.ort_version_supported = kVersion;
        if (std::strcmp(op, "Neg") == 0)
          RETURN_IF_REFUSED(api->GetEpApi()->EpGraphSupportInfo_AddNodesToFuse(support, &node, 1, &options));
      }
      return nullptr;
    };
    Compile = [](OrtEp*, const OrtGraph**, const OrtNode**, size_t count, OrtNodeComputeInfo** compiled,
                 OrtNode**) noexcept -> OrtStatus* {
      for (size_t i = 0; i < count; ++i) compiled[i] = new Negation();
      return nullptr;
    };
    ReleaseNodeComputeInfos = [](OrtEp*, OrtNodeComputeInfo** compiled, size_t count) noexcept {
      for (size_t i = 0; i < count; ++i) delete static_cast<Negation*>(compiled[i]);
    };
  }
};

struct Factory : OrtEpFactory {
  Factory() : OrtEpFactory{} {
    ort_version_supported = kVersion;
    GetName = [](const OrtEpFactory*) noexcept { return kName; };
    GetVendor = [](const OrtEpFactory*) noexcept { return "kvshare's tests"; };
    GetVendorId = [](const OrtEpFactory*) noexcept -> uint32_t { return 0; };
    GetVersion = [](const OrtEpFactory*) noexcept { return "0.0.1"; };
    GetSupportedDevices = [](OrtEpFactory* self, const OrtHardwareDevice* const* devices, size_t count,
                             OrtEpDevice** supported, size_t, size_t* found) noexcept -> OrtStatus* {
      *found = 0;
      for (size_t i = 0; i < count && *found == 0; ++i) {
        if (api->HardwareDevice_Type(devices[i]) != OrtHardwareDeviceType_CPU) continue;
        RETURN_IF_REFUSED(api->GetEpApi()->CreateEpDevice(self, devices[i], nullptr, nullptr, supported));
        *found = 1;
      }
      return nullptr;
    };
    CreateEp = [](OrtEpFactory*, const OrtHardwareDevice* const*, const OrtKeyValuePairs* const*, size_t,
                  const OrtSessionOptions*, const OrtLogger*, OrtEp** ep) noexcept -> OrtStatus* {
      *ep = new Provider();
      return nullptr;
    };
    ReleaseEp = [](OrtEpFactory*, OrtEp* ep) noexcept { delete static_cast<Provider*>(ep); };
    CreateAllocator = [](OrtEpFactory*, const OrtMemoryInfo*, const OrtKeyValuePairs*,
                         OrtAllocator** allocator) noexcept -> OrtStatus* {
      *allocator = nullptr;
      return nullptr;
    };
    ReleaseAllocator = [](OrtEpFactory*, OrtAllocator*) noexcept {};
    CreateDataTransfer = [](OrtEpFactory*, OrtDataTransferImpl** transfer) noexcept -> OrtStatus* {
      *transfer = nullptr;
      return nullptr;
    };
    IsStreamAware = [](const OrtEpFactory*) noexcept { return false; };
  }
};

}  // namespace

extern "C" {

[[gnu::visibility("default")]] OrtStatus* ORT_API_CALL CreateEpFactories(const char*, const OrtApiBase* base,
                                                                         const OrtLogger*, OrtEpFactory** factories,
                                                                         size_t, size_t* count) {
  static Factory factory;
  api = base->GetApi(kVersion);
  factories[0] = &factory;
  *count = 1;
  return nullptr;
}

[[gnu::visibility("default")]] OrtStatus* ORT_API_CALL ReleaseEpFactory(OrtEpFactory*) { return nullptr; }
}
