// How a Graph changes: each method changes the protobuf and the index of names alike.
#include <fmt/format.h>

#include <algorithm>

#include "graph/dependents.h"
#include "graph/graph.h"

namespace kvshare::graph {
namespace {

// Every name of a value in `graph` and its bodies.
void CollectNames(const onnx::GraphProto& graph, std::unordered_set<std::string>& names) {
  for (const auto& input : graph.input()) names.insert(input.name());
  for (const auto& initializer : graph.initializer()) names.insert(initializer.name());
  for (const auto& sparse : graph.sparse_initializer()) names.insert(sparse.values().name());
  for (const auto& node : graph.node()) {
    names.insert(node.input().begin(), node.input().end());
    names.insert(node.output().begin(), node.output().end());
    for (const auto& attribute : node.attribute()) {
      if (attribute.has_g()) CollectNames(attribute.g(), names);
      for (const auto& body : attribute.graphs()) CollectNames(body, names);
    }
  }
}

// The names of the nodes themselves.
void CollectNodeNames(const onnx::GraphProto& graph, std::unordered_set<std::string>& names) {
  for (const auto& node : graph.node()) {
    names.insert(node.name());
    for (const auto& attribute : node.attribute()) {
      if (attribute.has_g()) CollectNodeNames(attribute.g(), names);
      for (const auto& body : attribute.graphs()) CollectNodeNames(body, names);
    }
  }
}

std::string Fresh(const std::unordered_set<std::string>& taken, const std::string& base) {
  std::string name = base;
  for (int i = 1; taken.contains(name); ++i) name = fmt::format("{}_{}", base, i);
  return name;
}

template <typename Field, typename IsGone>
void EraseWhere(Field& field, const IsGone& is_gone) {
  std::vector<typename Field::value_type*> all(static_cast<size_t>(field.size()));
  field.ExtractSubrange(0, field.size(), all.data());
  for (auto* element : all) {
    if (is_gone(*element)) {
      delete element;  // NOLINT(cppcoreguidelines-owning-memory): the field gave it away
    } else {
      field.AddAllocated(element);
    }
  }
}

}  // namespace

void Graph::Compact() const {
  if (removed_ == nullptr) return;
  const auto removed = std::move(removed_);
  if (!removed->nodes.empty())
    EraseWhere(*proto_->mutable_node(), [&](const Node& node) { return removed->nodes.contains(&node); });
  if (!removed->initializers.empty())
    EraseWhere(*proto_->mutable_initializer(),
               [&](const onnx::TensorProto& tensor) { return removed->initializers.contains(tensor.name()); });
}

void Graph::CompactAll() const {
  Compact();
  for (const auto& [holder, held] : bodies_)
    for (const auto& body : held) body->CompactAll();
}

void Graph::MakeIndices() {
  for (const Graph* graph = this; graph != nullptr; graph = graph->outer_) graph->index();
}

// A reading within a body is one of the graphs around it too, up to the graph that has the value.
void Graph::AddRead(const std::string& value, const Node& reader, bool is_new) {
  if (value.empty()) return;
  index_->AddRead(value, reader, is_new);
  if (outer_ != nullptr && !index_->Defines(value)) outer_->AddRead(value, *holder_);
}

void Graph::RemoveRead(const std::string& value, const Node& reader) {
  if (value.empty()) return;
  index_->RemoveRead(value, reader);
  if (outer_ != nullptr && !index_->Defines(value)) outer_->RemoveRead(value, *holder_);
}

const Node& Graph::InsertBefore(const Node& where, const std::string& op_type, const std::vector<std::string>& inputs,
                                const std::vector<std::string>& outputs) {
  Compact();
  auto& nodes = *proto_->mutable_node();
  Node& node = *nodes.Add();
  node.set_op_type(op_type);
  node.set_name(FreshNodeName(outputs.front()));
  const int last = nodes.size() - 1;
  for (int i = last; i > 0 && (i == last || &nodes.Get(i + 1) != &where); --i) nodes.SwapElements(i, i - 1);
  SetOutputs(node, outputs);
  SetInputs(node, inputs);
  return node;
}

void Graph::Remove(const Node& node) {
  MakeIndices();
  ForEachReading(node, [&](const std::string& name) { RemoveRead(name, node); });
  bodies_.erase(&node);
  for (const auto& output : node.output()) index_->producers.erase(output);
  Main().dependents_.clear();
  if (removed_ == nullptr) removed_ = std::make_unique<Removed>();
  removed_->nodes.insert(&node);
}

void Graph::SetOp(const Node& node, const std::string& domain, const std::string& op_type) {
  Mutable(node).set_domain(domain);
  Mutable(node).set_op_type(op_type);
}

void Graph::SetInput(const Node& node, int index, const std::string& value) {
  std::vector<std::string> inputs(node.input().begin(), node.input().end());
  if (static_cast<int>(inputs.size()) <= index) inputs.resize(static_cast<size_t>(index) + 1);
  inputs[static_cast<size_t>(index)] = value;
  SetInputs(node, inputs);
}

void Graph::SetInputs(const Node& node, const std::vector<std::string>& inputs) {
  MakeIndices();
  for (const auto& input : node.input()) RemoveRead(input, node);
  const bool is_new = node.input().empty();
  auto& field = *Mutable(node).mutable_input();
  field.Clear();
  for (const auto& input : inputs) {
    *field.Add() = input;
    AddRead(input, node, is_new);
    if (Main().all_names_ != nullptr) Main().all_names_->insert(input);
  }
  Rejudge(node);
}

void Graph::SetOutputs(const Node& node, const std::vector<std::string>& outputs) {
  MakeIndices();
  for (const auto& output : node.output()) index_->producers.erase(output);
  auto& field = *Mutable(node).mutable_output();
  field.Clear();
  for (const auto& output : outputs) {
    *field.Add() = output;
    if (!output.empty()) index_->producers[output] = &node;
    if (Main().all_names_ != nullptr) Main().all_names_->insert(output);
  }
  Rejudge(node);
}

void Graph::SetAttribute(const Node& node, const onnx::AttributeProto& attribute) {
  RemoveAttribute(Mutable(node), attribute.name());
  *Mutable(node).add_attribute() = attribute;
}

void Graph::SetInt(const Node& node, std::string_view attribute, int64_t value) {
  graph::SetInt(Mutable(node), attribute, value);
}

void Graph::SetString(const Node& node, std::string_view attribute, const std::string& value) {
  onnx::AttributeProto text;
  text.set_name(std::string(attribute));
  text.set_type(onnx::AttributeProto::STRING);
  text.set_s(value);
  SetAttribute(node, text);
}

void Graph::ClearAttributes(const Node& node) { Mutable(node).clear_attribute(); }

std::string Graph::FreshName(const std::string& base) const {
  auto& taken = Main().all_names_;
  if (taken == nullptr) {
    taken = std::make_unique<std::unordered_set<std::string>>();
    CollectNames(Main().proto(), *taken);
  }
  return Fresh(*taken, base);
}

std::string Graph::FreshNodeName(const std::string& base) {
  auto& taken = Main().node_names_;
  if (taken == nullptr) {
    taken = std::make_unique<std::unordered_set<std::string>>();
    CollectNodeNames(Main().proto(), *taken);
  }
  return *taken->insert(Fresh(*taken, base)).first;
}

onnx::TensorProto& Graph::AddInitializer(const std::string& name, int type, size_t elements) {
  auto& tensor = *proto_->add_initializer();
  tensor.set_name(name);
  tensor.set_data_type(type);
  tensor.add_dims(static_cast<int64_t>(elements));
  if (index_ != nullptr) index_->initializers[name] = &tensor;
  if (Main().all_names_ != nullptr) Main().all_names_->insert(name);
  return tensor;
}

void Graph::AddInts(const std::string& name, const std::vector<int64_t>& values) {
  auto& tensor = AddInitializer(name, onnx::TensorProto::INT64, values.size());
  for (const int64_t value : values) tensor.add_int64_data(value);
}

void Graph::AddFloats(const std::string& name, const std::vector<float>& values) {
  auto& tensor = AddInitializer(name, onnx::TensorProto::FLOAT, values.size());
  for (const float value : values) tensor.add_float_data(value);
}

void Graph::RemoveInitializer(const std::string& name) {
  if (index_ != nullptr) index_->initializers.erase(name);
  if (removed_ == nullptr) removed_ = std::make_unique<Removed>();
  removed_->initializers.insert(name);
}

void Graph::RemoveInput(const std::string& name) {
  EraseWhere(*proto_->mutable_input(), [&](const auto& input) { return input.name() == name; });
  if (index_ == nullptr) return;
  index_->inputs.erase(name);
  index_->types.erase(name);
}

void Graph::RemoveOutput(const std::string& name) {
  const auto is_named = [&](const auto& info) { return info.name() == name; };
  const auto& infos = proto_->value_info();
  const auto known = std::find_if(infos.begin(), infos.end(), is_named);
  const auto& outputs = proto_->output();
  const auto output = std::find_if(outputs.begin(), outputs.end(), is_named);
  if (output == outputs.end()) return;
  const auto& kept = known == infos.end() ? *proto_->add_value_info() = *output : *known;
  if (index_ != nullptr) {
    index_->outputs.erase(name);
    index_->types[name] = &kept.type();
  }
  EraseWhere(*proto_->mutable_output(), is_named);
}

onnx::TensorShapeProto::Dimension* Graph::MutableExtent(const std::string& value, int64_t axis) {
  const auto found = index().types.find(value);
  if (found == index().types.end() || !found->second->tensor_type().has_shape()) return nullptr;
  auto& type = const_cast<onnx::TypeProto&>(*found->second);  // NOLINT(cppcoreguidelines-pro-type-const-cast): ours
  auto& shape = *type.mutable_tensor_type()->mutable_shape();
  const int64_t at = shape.dim_size() + axis;
  return at >= 0 && at < shape.dim_size() ? shape.mutable_dim(static_cast<int>(at)) : nullptr;
}

void Graph::SetExtent(const std::string& value, int64_t axis, int64_t extent) {
  if (auto* declared = MutableExtent(value, axis)) declared->set_dim_value(extent);
}

void Graph::SetExtent(const std::string& value, int64_t axis, const std::string& symbol) {
  if (auto* declared = MutableExtent(value, axis)) declared->set_dim_param(symbol);
}

void Graph::SetElementType(const std::string& value, int type) {
  // A graph output may have a value_info as well.
  for (auto* declared : {proto_->mutable_input(), proto_->mutable_output(), proto_->mutable_value_info()})
    for (auto& info : *declared)
      if (info.name() == value) info.mutable_type()->mutable_tensor_type()->set_elem_type(type);
}

Status Graph::Reorder() {
  CompactAll();
  Main().dependents_.clear();
  return Sort();
}

void Graph::TrimValueInfo() {
  const GraphIndex& names = index();
  EraseWhere(*proto_->mutable_value_info(), [&](const auto& info) {
    if (names.Defines(info.name())) return false;
    index_->types.erase(info.name());
    return true;
  });
  for (Graph* body : bodies()) body->TrimValueInfo();
}

void Graph::RequireImport(const std::string& domain, int64_t version) {
  for (const auto& import : model_->opset_import())
    if (CanonicalDomain(import.domain()) == CanonicalDomain(domain)) return;
  auto& import = *model_->add_opset_import();
  import.set_domain(domain);
  import.set_version(version);
}

void Graph::RaiseImport(const std::string& domain, int64_t version) {
  const auto raise = [&](auto& imports) {
    for (auto& import : imports)
      if (CanonicalDomain(import.domain()) == CanonicalDomain(domain) && import.version() < version)
        import.set_version(version);
  };
  raise(*model_->mutable_opset_import());
  for (auto& function : *model_->mutable_functions()) raise(*function.mutable_opset_import());
}

}  // namespace kvshare::graph
