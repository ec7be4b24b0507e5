#include "graph/attributes.h"

#include <fmt/format.h>

#include "graph/attribute_defaults.h"

namespace kvshare::graph {

namespace {
const std::string& Empty() {
  static const std::string empty;
  return empty;
}
}  // namespace

const std::string& CanonicalDomain(const std::string& domain) { return domain == "ai.onnx" ? Empty() : domain; }

const std::string& DomainOf(const Node& node) { return CanonicalDomain(node.domain()); }

const onnx::AttributeProto* FindAttribute(const Node& node, std::string_view name) {
  for (const onnx::AttributeProto& attribute : node.attribute())
    if (attribute.name() == name) return &attribute;
  return nullptr;
}

int64_t IntAttribute(const Node& node, std::string_view name) {
  const auto* attribute = FindAttribute(node, name);
  if (attribute != nullptr && attribute->has_i()) return attribute->i();
  return static_cast<int64_t>(AttributeDefault(node, name).value_or(0));
}

float FloatAttribute(const Node& node, std::string_view name) {
  const auto* attribute = FindAttribute(node, name);
  if (attribute != nullptr && attribute->has_f()) return attribute->f();
  return static_cast<float>(AttributeDefault(node, name).value_or(0));
}

bool Differs(const Node& node, std::string_view name) {
  const auto* attribute = FindAttribute(node, name);
  if (attribute == nullptr) return false;
  const auto standard = AttributeDefault(node, name);
  if (!standard) return true;
  return attribute->has_f() ? attribute->f() != static_cast<float>(*standard)
                            : attribute->i() != static_cast<int64_t>(*standard);
}

std::optional<std::vector<int64_t>> IntsAttribute(const Node& node, std::string_view name) {
  const auto* attribute = FindAttribute(node, name);
  if (attribute == nullptr) return std::nullopt;
  return std::vector<int64_t>(attribute->ints().begin(), attribute->ints().end());
}

void SetInt(Node& node, std::string_view name, int64_t value) {
  RemoveAttribute(node, name);
  onnx::AttributeProto& attribute = *node.add_attribute();
  attribute.set_name(std::string(name));
  attribute.set_type(onnx::AttributeProto::INT);
  attribute.set_i(value);
}

void RemoveAttribute(Node& node, std::string_view name) {
  for (int i = node.attribute_size() - 1; i >= 0; --i)
    if (node.attribute(i).name() == name) node.mutable_attribute()->DeleteSubrange(i, 1);
}

const std::string& Input(const Node& node, int index) {
  return index < node.input_size() ? node.input(index) : Empty();
}

const std::string& Output(const Node& node, int index) {
  return index < node.output_size() ? node.output(index) : Empty();
}

std::string NameOf(const Node& node) { return !node.name().empty() ? node.name() : "-> " + Output(node, 0); }

std::string Describe(const Node& node) { return fmt::format("{} '{}'", node.op_type(), NameOf(node)); }

}  // namespace kvshare::graph
