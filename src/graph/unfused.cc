#include "graph/unfused.h"

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <unordered_set>
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

}  // namespace

int64_t CountUnfusedAttention(const Graph& graph) {
  int64_t count = 0;
  for (const Node* node : graph.nodes())
    if (graph.IsOnnx(node, "Softmax") && HasScores(graph, *node) && HasValues(graph, *node)) ++count;
  for (const Graph* body : graph.bodies()) count += CountUnfusedAttention(*body);
  return count;
}

}  // namespace kvshare::graph
