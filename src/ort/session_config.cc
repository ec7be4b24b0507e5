#include "ort/session_config.h"

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

#include "ort/ort_context.h"

namespace kvshare::ort {
namespace {

Result<std::optional<std::string>> ReadEntry(const OrtApi& api, const OrtSessionOptions* options, const char* key) {
  int present = 0;
  KVSHARE_RETURN_IF_ERROR(FromOrt(api, api.HasSessionConfigEntry(options, key, &present)));
  if (present == 0) return std::optional<std::string>();
  size_t size = 0;
  KVSHARE_RETURN_IF_ERROR(FromOrt(api, api.GetSessionConfigEntry(options, key, nullptr, &size)));
  std::string value(size, '\0');
  KVSHARE_RETURN_IF_ERROR(FromOrt(api, api.GetSessionConfigEntry(options, key, value.data(), &size)));
  return std::optional<std::string>(value.c_str());  // size counts the terminating zero
}

Status BadValue(const char* what, const std::string& key, const std::string& value, const char* accepted) {
  return Status::InvalidInput(fmt::format("kvshare: {} '{}' is '{}'; needs {}", what, key, value, accepted));
}

// Takes over what a value of kvshare.drop_in or KVSHARE_DROP_IN says; false where it is none.
bool ReadDropIn(std::string_view value, bool zero_allowed, SessionConfig& config) {
  if (value != "1" && value != "gqa" && value != "attention" && !(value == "0" && zero_allowed)) return false;
  config.gqa = value == "1" || value == "gqa";
  config.attention = value == "1" || value == "attention";
  return true;
}

}  // namespace

HostVersion ParseHostVersion(const char* text) {
  HostVersion version;
  if (text == nullptr || std::sscanf(text, "%d.%d", &version.major, &version.minor) != 2) return {};
  return version;
}

const char* SessionConfig::DropInText() const {
  if (gqa && attention) return "gqa+attention";
  return gqa ? "gqa" : attention ? "attention" : "off";
}

Result<SessionConfig> ReadSessionConfig(const OrtApi& api, const OrtSessionOptions* options, HostVersion host) {
  SessionConfig config;
  config.host = host;
  config.gqa = config.attention = DropInByDefault();

  KVSHARE_ASSIGN_OR_RETURN(const auto drop_in, ReadEntry(api, options, "kvshare.drop_in"));
  if (drop_in && !ReadDropIn(*drop_in, !DropInByDefault(), config))
    return BadValue("session entry", "kvshare.drop_in", *drop_in,
                    DropInByDefault() ? "1, gqa or attention" : "0, 1, gqa or attention");
  const char* environment = std::getenv("KVSHARE_DROP_IN");
  if (environment != nullptr && *environment != '\0' && !ReadDropIn(environment, true, config))
    return BadValue("environment variable", "KVSHARE_DROP_IN", environment, "0, 1, gqa or attention");

  KVSHARE_ASSIGN_OR_RETURN(const auto alignment, ReadEntry(api, options, "kvshare.causal_alignment"));
  if (alignment && *alignment != "spec" && *alignment != "lower_right")
    return BadValue("session entry", "kvshare.causal_alignment", *alignment, "spec or lower_right");
  config.lower_right = alignment == "lower_right";
  return config;
}

}  // namespace kvshare::ort
