// The execution provider of kvshare's library: its name and its options.
#pragma once

#include <array>
#include <string_view>
#include <utility>

#include "kvshare/status.h"

namespace kvshare {

// Its name in lists of providers.
inline constexpr const char* kProviderName = "KvshareExecutionProvider";

// Option mode: which nodes of a model the provider takes.
enum class ProviderMode {
  kFuse,   // attention nodes; nodes that make masks; Transpose and Reshape of borrowed keys and values
  kNodes,  // attention nodes
  kOff,    // none
};
inline constexpr std::array<std::pair<std::string_view, ProviderMode>, 3> kProviderModes = {
    {{"fuse", ProviderMode::kFuse}, {"nodes", ProviderMode::kNodes}, {"off", ProviderMode::kOff}}};

// Option causal_alignment: how is_causal of an Attention without a past is read where S differs from T.
enum class CausalAlignment {
  kAuto,        // kLowerRight for a layer that borrows another layer's present, kSpec elsewhere
  kSpec,        // query s sees the first s + 1 keys, as ONNX says
  kLowerRight,  // the last query sees all keys
};
inline constexpr std::array<std::pair<std::string_view, CausalAlignment>, 3> kCausalAlignments = {
    {{"auto", CausalAlignment::kAuto},
     {"spec", CausalAlignment::kSpec},
     {"lower_right", CausalAlignment::kLowerRight}}};

struct ProviderOptions {
  ProviderMode mode = ProviderMode::kFuse;
  CausalAlignment causal_alignment = CausalAlignment::kAuto;
};

// Sets the option `name` of `options`. kInvalidInput, whose message names what is accepted, for an option or a value
// that is not known.
Status SetProviderOption(std::string_view name, std::string_view value, ProviderOptions& options);

}  // namespace kvshare
