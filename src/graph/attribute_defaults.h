// The defaults of attributes that a node leaves out, by operators' schemas. No other file knows a default.
#pragma once

#include <optional>
#include <string_view>

#include "graph/attributes.h"

namespace kvshare::graph {

// Nothing where the operator's schema has no such attribute, or no default for it.
std::optional<double> AttributeDefault(const Node& node, std::string_view attribute);

}  // namespace kvshare::graph
