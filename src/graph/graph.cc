#include "graph/graph.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "graph/constants.h"
#include "graph/dependents.h"
#include "graph/node_order.h"

namespace kvshare::graph {
std::vector<std::string> ReadNames(const Node& node) {
  std::unordered_set<std::string_view> seen;
  std::vector<std::string> names;
  ForEachReading(node, [&](const std::string& name) {
    if (seen.insert(name).second) names.push_back(name);
  });
  return names;
}

bool IsAttentionOp(const Node& node) {
  const std::string& domain = DomainOf(node);
  if (node.op_type() == "GroupQueryAttention") return domain == kMicrosoft || domain == kKvshare;
  return node.op_type() == "Attention" && (domain.empty() || domain == kKvshare);
}

namespace {

std::string FunctionKey(const std::string& domain, const std::string& name) {
  return CanonicalDomain(domain) + ":" + name;
}

// An attention node, or the Softmax of attention in single operators. `graph` is a GraphProto or a FunctionProto.
template <typename Proto>
bool MayHoldAttention(const Proto& graph) {
  const auto holds = [](const onnx::GraphProto& body) { return MayHoldAttention(body); };
  return std::any_of(graph.node().begin(), graph.node().end(), [&](const Node& node) {
    return IsAttentionOp(node) || node.op_type() == "Softmax" ||
           std::any_of(node.attribute().begin(), node.attribute().end(), [&](const auto& attribute) {
             return (attribute.has_g() && holds(attribute.g())) ||
                    std::any_of(attribute.graphs().begin(), attribute.graphs().end(), holds);
           });
  });
}

}  // namespace

Result<Graph> Graph::Make(onnx::ModelProto model, std::filesystem::path folder) {
  Graph graph;
  graph.folder_ = std::move(folder);
  graph.owned_ = std::make_unique<onnx::ModelProto>(std::move(model));
  graph.model_ = graph.owned_.get();
  graph.proto_ = graph.model_->mutable_graph();
  auto functions = std::make_shared<std::unordered_set<std::string>>();
  for (const auto& function : graph.model_->functions())
    functions->insert(FunctionKey(function.domain(), function.name()));
  graph.model_functions_ = std::move(functions);
  KVSHARE_RETURN_IF_ERROR(graph.Sort());
  KVSHARE_RETURN_IF_ERROR(graph.MakeBodies());
  for (const auto& function : graph.model_->functions()) KVSHARE_RETURN_IF_ERROR(graph.MakeFunction(function));
  return graph;
}

Graph::Graph() = default;
Graph::~Graph() = default;

Graph::Graph(Graph&& other) noexcept
    : owned_(std::move(other.owned_)),
      model_(other.model_),
      proto_(other.proto_),
      outer_(other.outer_),
      holder_(other.holder_),
      folder_(std::move(other.folder_)),
      place_(std::move(other.place_)),
      shadowed_(std::move(other.shadowed_)),
      is_function_(other.is_function_),
      bodies_(std::move(other.bodies_)),
      functions_(std::move(other.functions_)),
      model_functions_(std::move(other.model_functions_)),
      index_(std::move(other.index_)),
      removed_(std::move(other.removed_)),
      all_names_(std::move(other.all_names_)),
      node_names_(std::move(other.node_names_)) {
  for (auto& [holder, held] : bodies_)
    for (auto& body : held) body->outer_ = this;
}

Status Graph::MakeBodies() {
  for (Node& node : *proto_->mutable_node())
    for (auto& attribute : *node.mutable_attribute()) {
      if (attribute.has_g()) KVSHARE_RETURN_IF_ERROR(MakeBody(node, attribute.name(), *attribute.mutable_g()));
      for (auto& graph : *attribute.mutable_graphs()) KVSHARE_RETURN_IF_ERROR(MakeBody(node, attribute.name(), graph));
    }
  return {};
}

Status Graph::MakeBody(const Node& holder, const std::string& attribute, onnx::GraphProto& proto) {
  auto body = std::unique_ptr<Graph>(new Graph);
  body->model_ = model_;
  body->proto_ = &proto;
  body->outer_ = this;
  body->holder_ = &holder;
  body->folder_ = folder_;
  body->place_ = fmt::format("{} of {}{}{}", attribute, Describe(holder), place_.empty() ? "" : " in ", place_);
  body->is_function_ = is_function_;
  body->model_functions_ = model_functions_;
  KVSHARE_RETURN_IF_ERROR(body->Sort());
  const auto shadows = [&](const std::string& name) {
    if (!name.empty() && OwnerOf(name) != nullptr) body->shadowed_ = name;
  };
  for (const auto& input : proto.input()) shadows(input.name());
  for (const auto& initializer : proto.initializer()) shadows(initializer.name());
  for (const auto& node : proto.node())
    for (const auto& output : node.output()) shadows(output);
  if (body->shadowed_.empty()) body->shadowed_ = shadowed_;
  Graph& made = *body;
  bodies_[&holder].push_back(std::move(body));
  return made.MakeBodies();
}

Status Graph::MakeFunction(const onnx::FunctionProto& function) {
  if (!MayHoldAttention(function)) return {};
  auto made = std::unique_ptr<Graph>(new Graph);
  made->owned_ = std::make_unique<onnx::ModelProto>();
  made->model_ = made->owned_.get();
  made->proto_ = made->model_->mutable_graph();
  made->model_->set_domain(function.domain());
  made->proto_->set_name(function.name());
  *made->proto_->mutable_node() = function.node();
  for (const auto& input : function.input()) made->proto_->add_input()->set_name(input);
  for (const auto& output : function.output()) made->proto_->add_output()->set_name(output);
  *made->model_->mutable_opset_import() = function.opset_import();
  for (const auto& other : model_->functions()) {
    auto& named = *made->model_->add_functions();
    named.set_name(other.name());
    named.set_domain(other.domain());
  }
  made->folder_ = folder_;
  made->place_ = fmt::format("function '{}'", function.name());
  made->is_function_ = true;
  made->model_functions_ = model_functions_;
  KVSHARE_RETURN_IF_ERROR(made->Sort());
  KVSHARE_RETURN_IF_ERROR(made->MakeBodies());
  functions_.push_back(std::move(made));
  return {};
}

onnx::ModelProto Graph::Release() && {
  CompactAll();
  bodies_.clear();
  return std::move(*owned_);
}

std::vector<const Node*> Graph::nodes() const {
  Compact();
  const auto& nodes = proto_->node();
  return {nodes.pointer_begin(), nodes.pointer_end()};
}

const onnx::GraphProto& Graph::proto() const {
  CompactAll();
  return *proto_;
}

const onnx::ModelProto& Graph::model() const {
  Main().CompactAll();
  return *model_;
}

std::vector<const Graph*> Graph::BodiesOf(const Node& node) const {
  std::vector<const Graph*> found;
  if (const auto it = bodies_.find(&node); it != bodies_.end())
    for (const auto& body : it->second) found.push_back(body.get());
  return found;
}

std::vector<const Graph*> Graph::bodies() const {
  std::vector<const Graph*> found;
  if (bodies_.empty()) return found;
  for (const Node* node : nodes())
    for (const Graph* body : BodiesOf(*node)) found.push_back(body);
  return found;
}

std::vector<Graph*> Graph::bodies() {
  std::vector<Graph*> found;
  if (bodies_.empty()) return found;
  for (const Node* node : nodes())
    if (const auto it = bodies_.find(node); it != bodies_.end())
      for (const auto& body : it->second) found.push_back(body.get());
  return found;
}

Status Graph::Sort() {
  const std::string place = outer_ == nullptr && !is_function_ ? "model" : place_;
  const auto outside = [&](const std::string& name) { return outer_ != nullptr && outer_->OwnerOf(name) != nullptr; };
  KVSHARE_ASSIGN_OR_RETURN(const std::vector<Node*> sorted, OrderNodes(*proto_, place, outside));
  std::copy(sorted.begin(), sorted.end(), proto_->mutable_node()->pointer_begin());
  return {};
}

const GraphIndex& Graph::index() const {
  if (index_ != nullptr) return *index_;
  Compact();
  index_ = std::make_unique<GraphIndex>(*proto_);
  return *index_;
}

const Graph* Graph::OwnerOf(const std::string& value) const {
  if (index().Defines(value)) return this;
  return outer_ == nullptr ? nullptr : outer_->OwnerOf(value);
}

Graph* Graph::OwnerOf(const std::string& value) {
  if (index().Defines(value)) return this;
  return outer_ == nullptr ? nullptr : outer_->OwnerOf(value);
}

const Node* Graph::Producer(const std::string& value) const {
  const Graph* owner = OwnerOf(value);
  return owner == nullptr ? nullptr : owner->index().ProducerOf(value);
}

const std::string& Graph::Origin(const std::string& value) const {
  const std::string* origin = &value;
  for (const Node* node = Producer(value); IsOnnx(node, "Identity"); node = Producer(*origin))
    origin = &Input(*node, 0);
  return *origin;
}

const std::vector<const Node*>& Graph::Consumers(const std::string& value) const {
  static const std::vector<const Node*> none;
  const Graph* owner = OwnerOf(value);
  return owner == nullptr ? none : owner->index().ReadersOf(value);
}

bool Graph::IsInput(const std::string& value) const {
  const Graph* owner = OwnerOf(value);
  return owner != nullptr && owner->index().inputs.contains(value) && !owner->index().initializers.contains(value);
}

bool Graph::IsOutput(const std::string& value) const {
  const Graph* owner = OwnerOf(value);
  return owner != nullptr && owner->index().outputs.contains(value);
}

const onnx::TensorProto* Graph::ConstantTensor(const std::string& value) const {
  const Graph* owner = OwnerOf(value);
  if (owner == nullptr) return nullptr;
  // An initializer that is a graph input too is a default, not a constant.
  const auto& initializers = owner->index().initializers;
  if (const auto it = initializers.find(value); it != initializers.end())
    return owner->index().inputs.contains(value) ? nullptr : it->second;
  const Node* node = Producer(value);
  if (!IsOnnx(node, "Constant")) return nullptr;
  const auto* attribute = FindAttribute(*node, "value");
  return attribute != nullptr && attribute->has_t() ? &attribute->t() : nullptr;
}

std::optional<std::vector<int64_t>> Graph::Ints(const std::string& value) const {
  if (const auto* tensor = ConstantTensor(value)) return IntsOf(*tensor, folder_);
  const Node* node = Producer(value);
  if (!IsOnnx(node, "Constant")) return std::nullopt;
  if (const auto* one = FindAttribute(*node, "value_int")) return std::vector<int64_t>{one->i()};
  return IntsAttribute(*node, "value_ints");
}

std::optional<double> Graph::Scalar(const std::string& value) const {
  if (const auto ints = Ints(value); ints && ints->size() == 1) return static_cast<double>(ints->front());
  if (const auto* tensor = ConstantTensor(value)) return ScalarOf(*tensor, folder_);
  const Node* node = Producer(value);
  if (!IsOnnx(node, "Constant")) return std::nullopt;
  if (const auto* one = FindAttribute(*node, "value_float")) return one->f();
  const auto* many = FindAttribute(*node, "value_floats");
  return many != nullptr && many->floats_size() == 1 ? std::optional<double>(many->floats(0)) : std::nullopt;
}

std::optional<std::vector<double>> Graph::Floats(const std::string& value) const {
  const auto* tensor = ConstantTensor(value);
  return tensor == nullptr ? std::nullopt : FloatsOf(*tensor, folder_);
}

const onnx::TypeProto* Graph::TypeOf(const std::string& value) const {
  const Graph* owner = OwnerOf(value);
  if (owner == nullptr) return nullptr;
  const auto it = owner->index().types.find(value);
  return it == owner->index().types.end() ? nullptr : it->second;
}

int Graph::ElementType(const std::string& value) const {
  if (const auto* tensor = ConstantTensor(value)) return tensor->data_type();
  const auto* type = TypeOf(value);
  return type == nullptr ? 0 : type->tensor_type().elem_type();
}

std::optional<std::vector<int64_t>> Graph::Shape(const std::string& value) const {
  if (const auto* tensor = ConstantTensor(value))
    return std::vector<int64_t>(tensor->dims().begin(), tensor->dims().end());
  const auto* type = TypeOf(value);
  if (type == nullptr || !type->tensor_type().has_shape()) return std::nullopt;
  std::vector<int64_t> shape;
  for (const auto& dim : type->tensor_type().shape().dim()) shape.push_back(dim.has_dim_value() ? dim.dim_value() : -1);
  return shape;
}

std::string Graph::ExtentName(const std::string& value, int64_t axis) const {
  const auto* type = TypeOf(value);
  if (type == nullptr || axis < 0 || axis >= type->tensor_type().shape().dim_size()) return "";
  return type->tensor_type().shape().dim(static_cast<int>(axis)).dim_param();
}

bool Graph::IsModelFunction(const Node& node) const {
  return !model_functions_->empty() && model_functions_->contains(FunctionKey(node.domain(), node.op_type()));
}

bool Graph::IsOnnx(const Node* node, std::string_view op) const {
  return node != nullptr && node->op_type() == op && DomainOf(*node).empty() && !IsModelFunction(*node);
}

}  // namespace kvshare::graph
