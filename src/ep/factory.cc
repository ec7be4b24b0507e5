// CreateEpFactories and ReleaseEpFactory: ONNX Runtime's entries of a plugin execution provider.
#include <fmt/format.h>

#include <map>
#include <mutex>

#include "ep/ep.h"
#include "ep/graph_view.h"
#include "ep/options.h"
#include "kvshare/provider.h"
#include "kvshare/version.h"
#include "ort/custom_op.h"

namespace kvshare::ep {
namespace {

using ort::FromOrt;
using ort::Guarded;

// One for each ONNX Runtime of the process, whatever name the library is registered by. A session may outlive its
// registration and still needs its factory: never freed.
class Factory final : public OrtEpFactory {
 public:
  explicit Factory(const Host& host) : OrtEpFactory{}, host_(host) {
    ort_version_supported = kApiVersion;
    GetName = [](const OrtEpFactory*) noexcept { return kProviderName; };
    GetVendor = [](const OrtEpFactory*) noexcept { return "kvshare"; };
    GetVendorId = [](const OrtEpFactory*) noexcept -> uint32_t { return 0; };
    GetVersion = [](const OrtEpFactory*) noexcept { return kVersion; };
    GetSupportedDevices = SupportedDevices;
    CreateEp = Create;
    ReleaseEp = [](OrtEpFactory*, OrtEp* ep) noexcept { delete static_cast<ExecutionProvider*>(ep); };
    // The CPU's own memory: ONNX Runtime allocates it, and nothing is copied.
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
    GetNumCustomOpDomains = CountDomains;
    GetCustomOpDomains = Domains;
  }

 private:
  static const Host& HostOf(const OrtEpFactory* self) { return static_cast<const Factory*>(self)->host_; }

  static OrtStatus* ORT_API_CALL SupportedDevices(OrtEpFactory* self, const OrtHardwareDevice* const* devices,
                                                  size_t count, OrtEpDevice** supported, size_t most,
                                                  size_t* found) noexcept {
    *found = 0;
    for (size_t i = 0; i < count && *found < most && *found == 0; ++i) {
      if (HostOf(self).api.HardwareDevice_Type(devices[i]) != OrtHardwareDeviceType_CPU) continue;
      OrtStatus* status = HostOf(self).ep.CreateEpDevice(self, devices[i], nullptr, nullptr, &supported[*found]);
      if (status != nullptr) return status;
      ++*found;
    }
    return nullptr;
  }

  static OrtStatus* ORT_API_CALL Create(OrtEpFactory* self, const OrtHardwareDevice* const*,
                                        const OrtKeyValuePairs* const*, size_t, const OrtSessionOptions* session,
                                        const OrtLogger* logger, OrtEp** ep) noexcept {
    *ep = nullptr;
    return Guarded(HostOf(self).api, [&]() -> Status {
      KVSHARE_ASSIGN_OR_RETURN(const Options options, ReadOptions(HostOf(self).api, session));
      KVSHARE_ASSIGN_OR_RETURN(auto made, ExecutionProvider::Make(HostOf(self), options, logger));
      *ep = made.release();
      return {};
    });
  }

  // Domain kvshare, so that rewritten models need no other registration.
  static Result<std::vector<OrtCustomOpDomain*>> DomainsOf(const Host& host) {
    ort::SessionConfig config;
    config.host = host.version;
    return ort::DomainsOf(host.api, config);
  }

  static OrtStatus* ORT_API_CALL CountDomains(OrtEpFactory* self, size_t* count) noexcept {
    *count = 0;
    return Guarded(HostOf(self).api, [&]() -> Status {
      KVSHARE_ASSIGN_OR_RETURN(const auto domains, DomainsOf(HostOf(self)));
      *count = domains.size();
      return {};
    });
  }

  static OrtStatus* ORT_API_CALL Domains(OrtEpFactory* self, OrtCustomOpDomain** domains, size_t count) noexcept {
    return Guarded(HostOf(self).api, [&]() -> Status {
      KVSHARE_ASSIGN_OR_RETURN(const auto all, DomainsOf(HostOf(self)));
      for (size_t i = 0; i < count && i < all.size(); ++i) domains[i] = all[i];
      return {};
    });
  }

  Host host_;
};

Factory& FactoryOf(const OrtApi& api, ort::HostVersion version) {
  static std::mutex mutex;
  static auto* factories = new std::map<const OrtApi*, Factory>();
  const std::lock_guard lock(mutex);
  return factories->try_emplace(&api, Host{api, *api.GetEpApi(), version}).first->second;
}

}  // namespace
}  // namespace kvshare::ep

extern "C" {

[[gnu::visibility("default")]] OrtStatus* ORT_API_CALL CreateEpFactories(const char*, const OrtApiBase* base,
                                                                         const OrtLogger*, OrtEpFactory** factories,
                                                                         size_t most, size_t* count) {
  using namespace kvshare;
  *count = 0;
  const OrtApi* api = base->GetApi(ep::kApiVersion);
  if (api == nullptr)  // a status is the first entry of the table since version 1
    return ort::Guarded(*base->GetApi(1), [&] {
      return Status::Refused(
          fmt::format("kvshare {}: ONNX Runtime {} has no C API version {}; the execution provider "
                      "needs ONNX Runtime 1.24 or later, custom ops and drop-in serve 1.18 and later",
                      kVersion, base->GetVersionString(), ep::kApiVersion));
    });
  return ort::Guarded(*api, [&]() -> Status {
    if (most < 1) return Status::Internal("kvshare: no room for an execution provider's factory");
    factories[0] = &ep::FactoryOf(*api, ort::ParseHostVersion(base->GetVersionString()));
    *count = 1;
    return {};
  });
}

[[gnu::visibility("default")]] OrtStatus* ORT_API_CALL ReleaseEpFactory(OrtEpFactory*) { return nullptr; }
}
