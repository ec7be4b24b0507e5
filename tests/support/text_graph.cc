#include "tests/support/text_graph.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <charconv>
#include <cstdlib>
#include <optional>
#include <vector>

namespace kvshare::graph {
namespace {

using onnx::TensorProto;

std::string_view Trim(std::string_view text) {
  const auto begin = text.find_first_not_of(" \t\r");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\r") - begin + 1);
}

// Splits at `separator` outside brackets.
std::vector<std::string_view> Split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  int depth = 0;
  size_t begin = 0;
  for (size_t i = 0; i <= text.size(); ++i) {
    if (i == text.size() || (text[i] == separator && depth == 0)) {
      if (const auto part = Trim(text.substr(begin, i - begin)); !part.empty()) parts.push_back(part);
      begin = i + 1;
    } else {
      depth += (text[i] == '[') - (text[i] == ']');
    }
  }
  return parts;
}

std::optional<int64_t> Integer(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

int TypeOf(std::string_view name) {
  if (name == "f32") return TensorProto::FLOAT;
  if (name == "f16") return TensorProto::FLOAT16;
  if (name == "i64") return TensorProto::INT64;
  if (name == "i32") return TensorProto::INT32;
  return name == "bool" ? TensorProto::BOOL : TensorProto::UNDEFINED;
}

// "f32[B,S,128]": the type and its extents.
bool ReadType(std::string_view text, int& type, std::vector<std::string_view>& extents) {
  const auto open = text.find('[');
  type = TypeOf(text.substr(0, open));
  if (type == TensorProto::UNDEFINED || open == std::string_view::npos || text.back() != ']') return false;
  extents = Split(text.substr(open + 1, text.size() - open - 2), ',');
  return true;
}

bool ReadValue(std::string_view text, onnx::ValueInfoProto& info) {
  const auto words = Split(text, ' ');
  int type = 0;
  std::vector<std::string_view> extents;
  if (words.size() != 2 || !ReadType(words[1], type, extents)) return false;
  info.set_name(std::string(words[0]));
  auto& tensor = *info.mutable_type()->mutable_tensor_type();
  tensor.set_elem_type(type);
  tensor.mutable_shape();
  for (const auto extent : extents) {
    auto& dim = *tensor.mutable_shape()->add_dim();
    if (const auto value = Integer(extent)) {
      dim.set_dim_value(*value);
    } else {
      dim.set_dim_param(std::string(extent));
    }
  }
  return true;
}

constexpr int64_t kMostElements = 1 << 20;  // of a small graph's constant

// "name i64[3] = 0 0 -1"; fewer values than elements repeat the last.
bool ReadConstant(std::string_view text, TensorProto& tensor) {
  const auto equals = text.find('=');
  onnx::ValueInfoProto info;
  if (equals == std::string_view::npos || !ReadValue(Trim(text.substr(0, equals)), info)) return false;
  tensor.set_name(info.name());
  const int type = info.type().tensor_type().elem_type();
  tensor.set_data_type(type);
  int64_t count = 1;
  for (const auto& dim : info.type().tensor_type().shape().dim()) {
    tensor.add_dims(dim.dim_value());
    if (dim.dim_value() < 0 || __builtin_mul_overflow(count, dim.dim_value(), &count)) return false;
  }
  if (count > kMostElements) return false;
  const auto values = Split(text.substr(equals + 1), ' ');
  if (count > 0 && values.empty()) return false;
  for (int64_t i = 0; i < count; ++i) {
    const std::string word(values[std::min<size_t>(static_cast<size_t>(i), values.size() - 1)]);
    if (type == TensorProto::FLOAT) {
      tensor.add_float_data(std::strtof(word.c_str(), nullptr));
    } else if (const auto value = Integer(word); value && type == TensorProto::INT64) {
      tensor.add_int64_data(*value);
    } else if (value && type != TensorProto::FLOAT16) {
      tensor.add_int32_data(static_cast<int32_t>(*value));
    } else {
      return false;
    }
  }
  return true;
}

bool ReadAttribute(std::string_view text, onnx::AttributeProto& attribute) {
  const auto equals = text.find('=');
  if (equals == std::string_view::npos) return false;
  attribute.set_name(std::string(Trim(text.substr(0, equals))));
  const auto value = Trim(text.substr(equals + 1));
  if (value.empty()) return false;
  if (value.front() == '[') {
    attribute.set_type(onnx::AttributeProto::INTS);
    for (const auto item : Split(value.substr(1, value.size() - 2), ',')) attribute.add_ints(Integer(item).value_or(0));
  } else if (value.front() == '\'') {
    attribute.set_type(onnx::AttributeProto::STRING);
    attribute.set_s(std::string(value.substr(1, value.size() - 2)));
  } else if (const auto integer = Integer(value)) {
    attribute.set_type(onnx::AttributeProto::INT);
    attribute.set_i(*integer);
  } else {
    attribute.set_type(onnx::AttributeProto::FLOAT);
    attribute.set_f(std::strtof(std::string(value).c_str(), nullptr));
  }
  return true;
}

// "a, b = domain.Op(x, _, y) {k=v}"
bool ReadNode(std::string_view text, onnx::NodeProto& node) {
  const auto equals = text.find('=');
  const auto open = text.find('(', equals);
  const auto close = text.find(')', open);
  if (equals == std::string_view::npos || open == std::string_view::npos || close == std::string_view::npos)
    return false;
  const auto add = [](std::string_view name) { return name == "_" ? std::string() : std::string(name); };
  for (const auto name : Split(text.substr(0, equals), ',')) node.add_output(add(name));
  for (const auto name : Split(text.substr(open + 1, close - open - 1), ',')) node.add_input(add(name));
  const auto op = Trim(text.substr(equals + 1, open - equals - 1));
  const auto dot = op.rfind('.');
  node.set_op_type(std::string(op.substr(dot == std::string_view::npos ? 0 : dot + 1)));
  if (dot != std::string_view::npos) node.set_domain(std::string(op.substr(0, dot)));
  if (node.output_size() == 0 || node.op_type().empty()) return false;
  node.set_name(node.output(0));
  const auto brace = text.find('{', close);
  if (brace == std::string_view::npos) return Trim(text.substr(close + 1)).empty();
  if (text.back() != '}') return false;
  for (const auto part : Split(text.substr(brace + 1, text.size() - brace - 2), ','))
    if (!ReadAttribute(part, *node.add_attribute())) return false;
  return true;
}

bool ReadImport(std::string_view text, onnx::OperatorSetIdProto& import) {
  const auto words = Split(text, ' ');
  const auto version = words.size() == 2 ? Integer(words[1]) : std::nullopt;
  if (!version) return false;
  import.set_domain(std::string(words[0]));
  import.set_version(*version);
  return true;
}

bool ReadLine(std::string_view line, onnx::ModelProto& model) {
  auto& graph = *model.mutable_graph();
  const auto rest = [&](std::string_view word) { return Trim(line.substr(word.size())); };
  if (line.starts_with("import ")) return ReadImport(rest("import"), *model.add_opset_import());
  if (line.starts_with("input ")) return ReadValue(rest("input"), *graph.add_input());
  if (line.starts_with("output ")) return ReadValue(rest("output"), *graph.add_output());
  if (line.starts_with("value ")) return ReadValue(rest("value"), *graph.add_value_info());
  if (line.starts_with("const ")) return ReadConstant(rest("const"), *graph.add_initializer());
  return ReadNode(line, *graph.add_node());
}

std::string NameOrBlank(const std::string& name) { return name.empty() ? "_" : name; }

std::string AttributeText(const onnx::AttributeProto& attribute) {
  switch (attribute.type()) {
    case onnx::AttributeProto::INT: return fmt::format("{}={}", attribute.name(), attribute.i());
    case onnx::AttributeProto::FLOAT: return fmt::format("{}={:#}", attribute.name(), attribute.f());
    case onnx::AttributeProto::STRING: return fmt::format("{}='{}'", attribute.name(), attribute.s());
    case onnx::AttributeProto::INTS: return fmt::format("{}=[{}]", attribute.name(), fmt::join(attribute.ints(), ","));
    default: return fmt::format("{}=...", attribute.name());
  }
}

}  // namespace

Result<onnx::ModelProto> ParseTextGraph(std::string_view text) {
  onnx::ModelProto model;
  model.set_ir_version(10);
  model.add_opset_import()->set_version(24);
  model.mutable_graph()->set_name("text");
  int number = 0;
  while (!text.empty()) {
    const auto newline = text.find('\n');
    std::string_view line = text.substr(0, newline);
    text = newline == std::string_view::npos ? std::string_view() : text.substr(newline + 1);
    ++number;
    line = Trim(line.substr(0, line.find('#')));
    if (!line.empty() && !ReadLine(line, model))
      return Status::InvalidInput(fmt::format("line {}: '{}' is no statement of a text graph", number, line));
  }
  return model;
}

std::string ToText(const onnx::ModelProto& model) {
  std::string text;
  for (const auto& node : model.graph().node()) {
    std::vector<std::string> outputs;
    std::vector<std::string> inputs;
    std::vector<std::string> attributes;
    for (const auto& name : node.output()) outputs.push_back(NameOrBlank(name));
    for (const auto& name : node.input()) inputs.push_back(NameOrBlank(name));
    for (const auto& attribute : node.attribute()) attributes.push_back(AttributeText(attribute));
    text += fmt::format("{} = {}{}({})", fmt::join(outputs, ", "), node.domain().empty() ? "" : node.domain() + ".",
                        node.op_type(), fmt::join(inputs, ", "));
    if (!attributes.empty()) text += fmt::format(" {{{}}}", fmt::join(attributes, ", "));
    text += '\n';
  }
  return text;
}

}  // namespace kvshare::graph
