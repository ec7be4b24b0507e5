#include "graph/unfused.h"

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

namespace kvshare::graph {
namespace {

// What stands between scores and Softmax (scale, mask, softcap), and between weights and values.
constexpr std::array<std::string_view, 12> kElementwise = {"Add",  "Sub",      "Mul",     "Div",     "Where", "Tanh",
                                                           "Cast", "Identity", "Dropout", "Reshape", "Slice", "Concat"};

bool IsElementwise(const Graph& graph, const Node* node) {
  return std::any_of(kElementwise.begin(), kElementwise.end(), [&](auto op) { return graph.IsOnnx(node, op); });
}

// A product of two values that are both computed.
bool IsProduct(const Graph& graph, const Node* node) {
  if (node == nullptr || node->input_size() < 2) return false;
  const bool fused = node->op_type() == "FusedMatMul" && node->domain() == kMicrosoft;
  if (!fused && !graph.IsOnnx(node, "MatMul")) return false;
  return graph.ConstantTensor(node->input(0)) == nullptr && graph.ConstantTensor(node->input(1)) == nullptr;
}

// A product among what `softmax` is made of.
bool HasScores(const Graph& graph, const Node& softmax) {
  std::unordered_set<std::string> seen;
  std::vector<std::string> open = {Input(softmax, 0)};
  while (!open.empty()) {
    const std::string value = std::move(open.back());
    open.pop_back();
    const Node* node = seen.insert(value).second ? graph.Producer(value) : nullptr;
    if (IsProduct(graph, node)) return true;
    if (IsElementwise(graph, node)) open.insert(open.end(), node->input().begin(), node->input().end());
  }
  return false;
}

// A product that takes what `softmax` makes as its first factor.
bool HasValues(const Graph& graph, const Node& softmax) {
  std::unordered_set<std::string> seen;
  std::vector<std::string> open = {Output(softmax, 0)};
  while (!open.empty()) {
    const std::string value = std::move(open.back());
    open.pop_back();
    if (value.empty() || !seen.insert(value).second) continue;
    for (const Node* reader : graph.Consumers(value)) {
      if (IsProduct(graph, reader) && reader->input(0) == value) return true;
      if (IsElementwise(graph, reader)) open.push_back(Output(*reader, 0));
    }
  }
  return false;
}

// Of the nodes of `graph` and its bodies, calls not among them.
int64_t CountHere(const Graph& graph) {
  auto count = static_cast<int64_t>(UnfusedAttention(graph).size());
  for (const Graph* body : graph.bodies()) count += CountHere(*body);
  return count;
}

// Counts through calls of functions, which may call others.
class Calls {
 public:
  explicit Calls(const Graph& main) {
    for (const auto& function : main.model().functions())
      functions_[KeyOf(function.domain(), function.name())].proto = &function;
    for (const auto& function : main.functions())
      functions_[KeyOf(function->model().domain(), function->proto().name())].count = CountHere(*function);
  }

  // What the calls of `graph`, a GraphProto or a FunctionProto, add.
  template <typename Proto>
  int64_t Count(const Proto& graph) {
    int64_t count = 0;
    for (const Node& node : graph.node()) {
      count += CountCall(node);
      for (const auto& attribute : node.attribute()) {
        if (attribute.has_g()) count += Count(attribute.g());
        for (const auto& body : attribute.graphs()) count += Count(body);
      }
      count = std::min(count, kMost);
    }
    return count;
  }

 private:
  static constexpr int64_t kMost = 1'000'000;  // functions that call others twice count twice as many each

  struct Function {
    const onnx::FunctionProto* proto = nullptr;
    int64_t count = 0;  // of its own nodes, and from when it was asked for of its calls
    bool asked = false;
  };

  static std::string KeyOf(const std::string& domain, const std::string& name) {
    return CanonicalDomain(domain) + ":" + name;
  }

  int64_t CountCall(const Node& node) {
    const auto found = functions_.find(KeyOf(node.domain(), node.op_type()));
    if (found == functions_.end()) return 0;
    Function& function = found->second;
    if (!std::exchange(function.asked, true)) function.count += Count(*function.proto);
    return function.count;
  }

  std::unordered_map<std::string, Function> functions_;
};

}  // namespace

std::vector<const Node*> UnfusedAttention(const Graph& graph) {
  std::vector<const Node*> found;
  for (const Node* node : graph.nodes())
    if (graph.IsOnnx(node, "Softmax") && HasScores(graph, *node) && HasValues(graph, *node)) found.push_back(node);
  return found;
}

int64_t CountUnfusedAttention(const Graph& graph) { return CountHere(graph) + Calls(graph).Count(graph.proto()); }

}  // namespace kvshare::graph
