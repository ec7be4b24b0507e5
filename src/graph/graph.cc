#include "graph/graph.h"

#include <fmt/format.h>

#include <algorithm>
#include <queue>

#include "graph/constants.h"

namespace kvshare::graph {
namespace {

void CollectReads(const Node& node, std::unordered_set<std::string>& seen, std::vector<std::string>& names);

// What a subgraph reads of its surroundings: all it reads less what it makes itself.
void CollectCaptured(const onnx::GraphProto& graph, std::unordered_set<std::string>& seen,
                     std::vector<std::string>& names) {
  std::unordered_set<std::string> own;
  for (const auto& input : graph.input()) own.insert(input.name());
  for (const auto& initializer : graph.initializer()) own.insert(initializer.name());
  for (const auto& node : graph.node()) own.insert(node.output().begin(), node.output().end());
  std::unordered_set<std::string> read;
  std::vector<std::string> all;
  for (const auto& node : graph.node()) CollectReads(node, read, all);
  for (const auto& output : graph.output()) all.push_back(output.name());
  for (const auto& name : all)
    if (!name.empty() && !own.contains(name) && seen.insert(name).second) names.push_back(name);
}

void CollectReads(const Node& node, std::unordered_set<std::string>& seen, std::vector<std::string>& names) {
  for (const auto& input : node.input())
    if (!input.empty() && seen.insert(input).second) names.push_back(input);
  for (const auto& attribute : node.attribute()) {
    if (attribute.has_g()) CollectCaptured(attribute.g(), seen, names);
    for (const auto& graph : attribute.graphs()) CollectCaptured(graph, seen, names);
  }
}

}  // namespace

std::vector<std::string> ReadNames(const Node& node) {
  std::unordered_set<std::string> seen;
  std::vector<std::string> names;
  CollectReads(node, seen, names);
  return names;
}

Result<Graph> Graph::Make(onnx::ModelProto model, std::filesystem::path folder) {
  Graph graph;
  graph.folder_ = std::move(folder);
  auto& nodes = *model.mutable_graph()->mutable_node();
  graph.nodes_.resize(static_cast<size_t>(nodes.size()));
  for (size_t i = graph.nodes_.size(); i-- > 0;) graph.nodes_[i].reset(nodes.ReleaseLast());
  graph.model_ = std::move(model);
  KVSHARE_RETURN_IF_ERROR(graph.Sort());
  return graph;
}

onnx::ModelProto Graph::Release() && {
  for (auto& node : nodes_) model_.mutable_graph()->mutable_node()->AddAllocated(node.release());
  nodes_.clear();
  return std::move(model_);
}

onnx::ModelProto Graph::Copy() const {
  onnx::ModelProto model = model_;
  for (const auto& node : nodes_) *model.mutable_graph()->add_node() = *node;
  return model;
}

std::vector<Node*> Graph::nodes() const {
  std::vector<Node*> pointers;
  pointers.reserve(nodes_.size());
  for (const auto& node : nodes_) pointers.push_back(node.get());
  return pointers;
}

Status Graph::Sort() {
  std::unordered_map<std::string, size_t> maker;
  const auto& graph = model_.graph();
  std::unordered_set<std::string> given;
  for (const auto& input : graph.input())
    if (!given.insert(input.name()).second)
      return Status::InvalidInput(fmt::format("model: graph input '{}' is declared twice", input.name()));
  std::unordered_set<std::string> initializers;
  for (const auto& initializer : graph.initializer())
    if (!initializers.insert(initializer.name()).second)
      return Status::InvalidInput(fmt::format("model: initializer '{}' is given twice", initializer.name()));
  for (const auto& initializer : graph.sparse_initializer()) initializers.insert(initializer.values().name());
  given.merge(initializers);
  for (size_t i = 0; i < nodes_.size(); ++i) {
    for (const auto& output : nodes_[i]->output()) {
      if (output.empty()) continue;
      if (given.contains(output) || !maker.emplace(output, i).second)
        return Status::InvalidInput(fmt::format("{}: output '{}' has another producer already; needs a name of its own",
                                                Describe(*nodes_[i]), output));
    }
  }
  for (const auto& output : graph.output())
    if (!given.contains(output.name()) && !maker.contains(output.name()))
      return Status::InvalidInput(fmt::format("model: graph output '{}' is produced by no node", output.name()));

  std::vector<int> waiting(nodes_.size(), 0);
  std::vector<std::vector<size_t>> readers(nodes_.size());
  for (size_t i = 0; i < nodes_.size(); ++i) {
    for (const auto& name : ReadNames(*nodes_[i])) {
      const auto it = maker.find(name);
      if (it != maker.end()) {
        readers[it->second].push_back(i);
        ++waiting[i];
      } else if (!given.contains(name)) {
        return Status::InvalidInput(
            fmt::format("{}: input '{}' is produced by no node; needs a producer, a graph input "
                        "or an initializer of that name",
                        Describe(*nodes_[i]), name));
      }
    }
  }
  std::priority_queue<size_t, std::vector<size_t>, std::greater<>> ready;
  for (size_t i = 0; i < nodes_.size(); ++i)
    if (waiting[i] == 0) ready.push(i);
  std::vector<std::unique_ptr<Node>> sorted;
  while (!ready.empty()) {
    const size_t i = ready.top();
    ready.pop();
    sorted.push_back(std::move(nodes_[i]));
    for (const size_t reader : readers[i])
      if (--waiting[reader] == 0) ready.push(reader);
  }
  if (sorted.size() != nodes_.size()) {
    const auto stuck = std::find_if(nodes_.begin(), nodes_.end(), [](const auto& node) { return node != nullptr; });
    return Status::InvalidInput(
        fmt::format("{}: is part of a cycle or waits for one; a graph must have none", Describe(**stuck)));
  }
  nodes_ = std::move(sorted);
  return {};
}

const Graph::Index& Graph::index() const {
  if (index_ != nullptr) return *index_;
  auto index = std::make_shared<Index>();
  for (const auto& node : nodes_) {
    for (const auto& output : node->output())
      if (!output.empty()) index->producer[output] = node.get();
    for (const auto& name : ReadNames(*node)) index->consumers[name].push_back(node.get());
  }
  const auto& graph = model_.graph();
  for (const auto& info : graph.value_info()) index->types[info.name()] = &info.type();
  for (const auto& info : graph.input()) {
    index->inputs.insert(info.name());
    index->types[info.name()] = &info.type();
  }
  for (const auto& info : graph.output()) {
    index->outputs.insert(info.name());
    index->types[info.name()] = &info.type();
  }
  for (const auto& initializer : graph.initializer()) index->initializers[initializer.name()] = &initializer;
  index_ = std::move(index);
  return *index_;
}

Node* Graph::Producer(const std::string& value) const {
  const auto it = index().producer.find(value);
  return it == index().producer.end() ? nullptr : it->second;
}

const std::vector<Node*>& Graph::Consumers(const std::string& value) const {
  static const std::vector<Node*> none;
  const auto it = index().consumers.find(value);
  return it == index().consumers.end() ? none : it->second;
}

bool Graph::IsInput(const std::string& value) const {
  return index().inputs.contains(value) && !index().initializers.contains(value);
}

bool Graph::IsOutput(const std::string& value) const { return index().outputs.contains(value); }

bool Graph::DependsOn(const std::string& value, const std::string& ancestor) const {
  std::unordered_set<std::string> seen;
  std::vector<std::string> open = {value};
  while (!open.empty()) {
    const std::string name = std::move(open.back());
    open.pop_back();
    if (name == ancestor) return true;
    if (!seen.insert(name).second) continue;
    if (const Node* node = Producer(name))
      for (auto& read : ReadNames(*node)) open.push_back(std::move(read));
  }
  return false;
}

const onnx::TensorProto* Graph::ConstantTensor(const std::string& value) const {
  // An initializer that is a graph input too is a default, not a constant.
  if (const auto it = index().initializers.find(value); it != index().initializers.end())
    return index().inputs.contains(value) ? nullptr : it->second;
  const Node* node = Producer(value);
  if (node == nullptr || node->op_type() != "Constant" || !node->domain().empty()) return nullptr;
  const auto* attribute = FindAttribute(*node, "value");
  return attribute != nullptr && attribute->has_t() ? &attribute->t() : nullptr;
}

std::optional<std::vector<int64_t>> Graph::Ints(const std::string& value) const {
  if (const auto* tensor = ConstantTensor(value)) return IntsOf(*tensor, folder_);
  const Node* node = Producer(value);
  if (node == nullptr || node->op_type() != "Constant" || !node->domain().empty()) return std::nullopt;
  if (const auto* one = FindAttribute(*node, "value_int")) return std::vector<int64_t>{one->i()};
  return IntsAttribute(*node, "value_ints");
}

std::optional<double> Graph::Scalar(const std::string& value) const {
  if (const auto ints = Ints(value); ints && ints->size() == 1) return static_cast<double>(ints->front());
  if (const auto* tensor = ConstantTensor(value)) return ScalarOf(*tensor, folder_);
  const Node* node = Producer(value);
  if (node == nullptr || node->op_type() != "Constant" || !node->domain().empty()) return std::nullopt;
  if (const auto* one = FindAttribute(*node, "value_float")) return one->f();
  const auto* many = FindAttribute(*node, "value_floats");
  return many != nullptr && many->floats_size() == 1 ? std::optional<double>(many->floats(0)) : std::nullopt;
}

int Graph::ElementType(const std::string& value) const {
  if (const auto* tensor = ConstantTensor(value)) return tensor->data_type();
  const auto it = index().types.find(value);
  return it == index().types.end() ? 0 : it->second->tensor_type().elem_type();
}

std::optional<std::vector<int64_t>> Graph::Shape(const std::string& value) const {
  if (const auto* tensor = ConstantTensor(value))
    return std::vector<int64_t>(tensor->dims().begin(), tensor->dims().end());
  const auto it = index().types.find(value);
  if (it == index().types.end() || !it->second->tensor_type().has_shape()) return std::nullopt;
  std::vector<int64_t> shape;
  for (const auto& dim : it->second->tensor_type().shape().dim())
    shape.push_back(dim.has_dim_value() ? dim.dim_value() : -1);
  return shape;
}

bool Graph::IsModelFunction(const Node& node) const {
  return std::any_of(model_.functions().begin(), model_.functions().end(), [&](const auto& function) {
    return function.name() == node.op_type() && function.domain() == node.domain();
  });
}

Node& Graph::InsertBefore(const Node& where, const std::string& op_type, const std::vector<std::string>& inputs,
                          const std::vector<std::string>& outputs) {
  const auto at = std::find_if(nodes_.begin(), nodes_.end(), [&](const auto& node) { return node.get() == &where; });
  auto node = std::make_unique<Node>();
  node->set_op_type(op_type);
  node->set_name(outputs.front());
  for (const auto& input : inputs) node->add_input(input);
  for (const auto& output : outputs) node->add_output(output);
  Touch();
  return **nodes_.insert(at, std::move(node));
}

std::string Graph::FreshName(const std::string& base) const {
  const Index& names = index();
  const auto taken = [&](const std::string& name) {
    return names.producer.contains(name) || names.inputs.contains(name) || names.initializers.contains(name) ||
           names.consumers.contains(name);
  };
  std::string name = base;
  for (int i = 1; taken(name); ++i) name = fmt::format("{}_{}", base, i);
  return name;
}

void Graph::AddInts(const std::string& name, const std::vector<int64_t>& values) {
  auto& tensor = *model_.mutable_graph()->add_initializer();
  tensor.set_name(name);
  tensor.set_data_type(onnx::TensorProto::INT64);
  tensor.add_dims(static_cast<int64_t>(values.size()));
  for (const int64_t value : values) tensor.add_int64_data(value);
  Touch();
}

void Graph::Remove(Node* node) {
  std::erase_if(nodes_, [&](const auto& owned) { return owned.get() == node; });
  Touch();
}

namespace {
template <typename Field>
void RemoveNamed(Field& field, const std::string& name) {
  for (int i = field.size() - 1; i >= 0; --i)
    if (field.Get(i).name() == name) field.DeleteSubrange(i, 1);
}
}  // namespace

void Graph::RemoveInitializer(const std::string& name) {
  RemoveNamed(*model_.mutable_graph()->mutable_initializer(), name);
  Touch();
}

void Graph::RemoveInput(const std::string& name) {
  RemoveNamed(*model_.mutable_graph()->mutable_input(), name);
  Touch();
}

void Graph::TrimValueInfo() {
  auto& infos = *model_.mutable_graph()->mutable_value_info();
  const Index& names = index();
  std::vector<int> gone;
  for (int i = infos.size() - 1; i >= 0; --i) {
    const std::string& name = infos.Get(i).name();
    if (!names.producer.contains(name) && !names.inputs.contains(name) && !names.initializers.contains(name))
      gone.push_back(i);
  }
  for (const int i : gone) infos.DeleteSubrange(i, 1);
  Touch();
}

void Graph::RequireImport(const std::string& domain, int64_t version) {
  for (const auto& import : model_.opset_import())
    if (import.domain() == domain) return;
  auto& import = *model_.add_opset_import();
  import.set_domain(domain);
  import.set_version(version);
}

}  // namespace kvshare::graph
