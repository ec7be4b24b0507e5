// Reading and writing a node's domain, attributes, inputs and outputs.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "onnx/onnx-ml.pb.h"

namespace kvshare::graph {

using Node = onnx::NodeProto;

inline constexpr const char* kMicrosoft = "com.microsoft";
inline constexpr const char* kKvshare = "kvshare";

// ONNX has two names for its default domain, "" and "ai.onnx". Both give "".
const std::string& CanonicalDomain(const std::string& domain);
const std::string& DomainOf(const Node& node);

const onnx::AttributeProto* FindAttribute(const Node& node, std::string_view name);

// The node's own value; where it has none (or one of another type), the default of the operator's schema, which
// attribute_defaults.cc lists; 0 where that has none.
int64_t IntAttribute(const Node& node, std::string_view name);
float FloatAttribute(const Node& node, std::string_view name);
std::optional<std::vector<int64_t>> IntsAttribute(const Node& node, std::string_view name);

// Does the node say something by this attribute? A schema's default written out says no more than its absence.
bool Differs(const Node& node, std::string_view name);

void SetInt(Node& node, std::string_view name, int64_t value);
void RemoveAttribute(Node& node, std::string_view name);

// Inputs and outputs that may be absent: "" where the node has none.
const std::string& Input(const Node& node, int index);
const std::string& Output(const Node& node, int index);

// "GroupQueryAttention 'layers.15/attn'", as messages open; nodes without a name go by their first output.
std::string Describe(const Node& node);
std::string NameOf(const Node& node);

}  // namespace kvshare::graph
