#include "ep/options.h"
#include "kvshare/provider.h"

#include <fmt/format.h>

#include <string>
#include <string_view>

#include "ort/ort_context.h"

namespace kvshare::ep {
namespace {

// Before an option's name; ONNX Runtime writes the provider's in lower case.
constexpr std::string_view kPrefix = "ep.kvshareexecutionprovider.";

Status BadValue(std::string_view name, std::string_view value, const char* accepted) {
  return Status::InvalidInput(fmt::format("{}: option '{}' is '{}'; needs {}", kProviderName, name, value, accepted));
}

Status Read(std::string_view name, std::string_view value, Options* options) {
  if (name == "mode") {
    if (value != "fuse" && value != "nodes" && value != "off") return BadValue(name, value, "fuse, nodes or off");
    options->mode = value == "fuse" ? Mode::kFuse : value == "nodes" ? Mode::kNodes : Mode::kOff;
    return {};
  }
  if (name == "causal_alignment") {
    if (value != "auto" && value != "spec" && value != "lower_right")
      return BadValue(name, value, "auto, spec or lower_right");
    options->alignment = value == "auto"   ? Alignment::kAuto
                         : value == "spec" ? Alignment::kSpec
                                           : Alignment::kLowerRight;
    return {};
  }
  return Status::InvalidInput(
      fmt::format("{}: option '{}' is not known; have mode, causal_alignment", kProviderName, name));
}

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
    if (key.starts_with(kPrefix)) status = Read(key.substr(kPrefix.size()), values[i], &read);
  }
  api.ReleaseKeyValuePairs(entries);
  if (!status.ok()) return status;
  return read;
}

}  // namespace kvshare::ep
