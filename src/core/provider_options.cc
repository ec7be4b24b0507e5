#include <fmt/format.h>

#include <cstddef>
#include <string>

#include "kvshare/provider.h"

namespace kvshare {
namespace {

// "fuse, nodes or off"
template <typename T, size_t kCount>
std::string NamesOf(const std::array<std::pair<std::string_view, T>, kCount>& values) {
  std::string names;
  for (size_t i = 0; i < kCount; ++i)
    names += fmt::format("{}{}", i == 0 ? "" : i + 1 == kCount ? " or " : ", ", values[i].first);
  return names;
}

template <typename T, size_t kCount>
Status Set(std::string_view option, std::string_view value,
           const std::array<std::pair<std::string_view, T>, kCount>& values, T& target) {
  for (const auto& [known, meaning] : values) {
    if (value != known) continue;
    target = meaning;
    return {};
  }
  return Status::InvalidInput(
      fmt::format("{}: its option {} is '{}'; needs {}", kProviderName, option, value, NamesOf(values)));
}

}  // namespace

Status SetProviderOption(std::string_view name, std::string_view value, ProviderOptions& options) {
  if (name == "mode") return Set(name, value, kProviderModes, options.mode);
  if (name == "causal_alignment") return Set(name, value, kCausalAlignments, options.causal_alignment);
  return Status::InvalidInput(
      fmt::format("{}: '{}' is none of its options; have mode, causal_alignment", kProviderName, name));
}

}  // namespace kvshare
