// Reading and writing a node's attributes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "onnx/onnx-ml.pb.h"

namespace kvshare::graph {

using Node = onnx::NodeProto;

const onnx::AttributeProto* FindAttribute(const Node& node, std::string_view name);

// Absent, or of another type: `otherwise`.
int64_t IntAttribute(const Node& node, std::string_view name, int64_t otherwise);
float FloatAttribute(const Node& node, std::string_view name, float otherwise);
std::optional<std::vector<int64_t>> IntsAttribute(const Node& node, std::string_view name);

void SetInt(Node& node, std::string_view name, int64_t value);
void RemoveAttribute(Node& node, std::string_view name);

// Inputs and outputs that may be absent: "" where the node has none.
const std::string& Input(const Node& node, int index);
const std::string& Output(const Node& node, int index);

// Sets input `index`, with empty inputs before it where needed.
void SetInput(Node& node, int index, const std::string& value);

// "GroupQueryAttention 'layers.15/attn'", as messages open; nodes without a name go by their first output.
std::string Describe(const Node& node);
std::string NameOf(const Node& node);

}  // namespace kvshare::graph
