// Attributes of attention nodes against core/ops.h, the table of the operators.
#pragma once

#include <string>
#include <vector>

#include "graph/attributes.h"

namespace kvshare::graph {

struct UnknownAttribute {
  std::string name;
  std::string nearest;  // a known one that differs by a letter or two; "" if none does
};

// Attributes of an attention node that its operator does not have: custom-op schemas accept them silently.
std::vector<UnknownAttribute> UnknownAttributes(const Node& node);

// Attributes that kvshare's drop-in reads and the operator of ONNX Runtime ignores.
std::vector<std::string> DropInAttributes(const Node& node);

// "has attribute 'sclae', which Attention does not know (scale?)", or "".
std::string UnknownAttributeText(const Node& node);

}  // namespace kvshare::graph
