#include "ep/options.h"

#include <string_view>

#include "ort/ort_context.h"

namespace kvshare::ep {
namespace {

// Before an option's name; ONNX Runtime writes the provider's in lower case.
constexpr std::string_view kPrefix = "ep.kvshareexecutionprovider.";

}  // namespace

Result<Options> ReadOptions(const OrtApi& api, const OrtSessionOptions* options) {
  OrtKeyValuePairs* entries = nullptr;
  KVSHARE_RETURN_IF_ERROR(ort::FromOrt(api, api.GetSessionOptionsConfigEntries(options, &entries)));
  const char* const* keys = nullptr;
  const char* const* values = nullptr;
  size_t count = 0;
  api.GetKeyValuePairs(entries, &keys, &values, &count);
  Options read;
  Status status;
  for (size_t i = 0; i < count && status.ok(); ++i) {
    const std::string_view key = keys[i];
    if (key == "ep.context_enable") read.makes_context = std::string_view(values[i]) == "1";
    if (key == "session.layer_assignment_settings" || key == "session.name_based_layer_assignment")
      read.sees_parts |= *values[i] != '\0';
    if (key.starts_with(kPrefix)) status = SetProviderOption(key.substr(kPrefix.size()), values[i], read.provider);
  }
  api.ReleaseKeyValuePairs(entries);
  if (!status.ok()) return status;
  return read;
}

}  // namespace kvshare::ep
