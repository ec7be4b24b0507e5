// How exporters call a cache where a graph takes it and where it hands it on.
#pragma once

#include <string>
#include <vector>

namespace kvshare::graph {

// The outputs that may be what a next step gives as input `past`, the usual name first: "past_key_values.3.key" ->
// "present.3.key", "past_conv.0" -> "present_conv.0", "past_key.3" -> "past_key.3_RetainedState" (QEfficient).
std::vector<std::string> PresentNames(const std::string& past);

}  // namespace kvshare::graph
