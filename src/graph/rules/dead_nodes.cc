// Removes what only the rewritten layers read: mask nodes, Transpose, Reshape, gathered rotary tables, and constants.
// Nodes that nobody read before are not ours to remove.
#include <algorithm>
#include <array>

#include "graph/match/readers.h"
#include "graph/rules/rule.h"

namespace kvshare::graph {
namespace {

// Ops worth a word when they stay: what a rewritten graph should be rid of.
bool IsWorthAWord(const Node& node) {
  static constexpr std::array<std::string_view, 10> ops = {"CumSum",    "GreaterOrEqual", "Less",      "And",
                                                           "Where",     "Expand",         "Transpose", "Reshape",
                                                           "Unsqueeze", "RotaryEmbedding"};
  return DomainOf(node).empty() && std::find(ops.begin(), ops.end(), node.op_type()) != ops.end();
}

bool IsDead(const Graph& graph, const Node& node) {
  return std::none_of(node.output().begin(), node.output().end(),
                      [&](const auto& output) { return !output.empty() && graph.IsRead(output); });
}

}  // namespace

void RunDeadNodes(Rewriting& rewriting) {
  struct Value {
    Graph* seen_from;
    std::string name;
    bool tell;  // worth a word if it stays: not the query that a rotary embedding handed on
  };
  std::vector<Value> open;
  for (const Released& released : rewriting.released) open.push_back({released.graph, released.value, released.tell});
  std::vector<Value> stayed;
  while (!open.empty()) {
    const auto [seen_from, value, tell] = std::move(open.back());
    open.pop_back();
    Graph* graph = seen_from->OwnerOf(value);
    if (graph == nullptr) continue;
    const Node* node = graph->Producer(value);
    if (node == nullptr) {
      if (graph->ConstantTensor(value) != nullptr && !graph->IsRead(value)) graph->RemoveInitializer(value);
      continue;
    }
    if (!IsDead(*graph, *node) || !graph->BodiesOf(*node).empty()) {
      if (tell) stayed.push_back({graph, value, tell});
      continue;
    }
    const bool tells = tell && node->op_type() != "RotaryEmbedding";
    for (auto& name : ReadNames(*node)) open.push_back({graph, std::move(name), tells});
    rewriting.Record(kDeadNodesRule, *node, Outcome::Applied());
    graph->Remove(*node);
  }
  std::vector<const Node*> told;
  for (const auto& [graph, value, tell] : stayed) {
    const Node* node = graph->Producer(value);
    if (node == nullptr || !IsWorthAWord(*node) || std::find(told.begin(), told.end(), node) != told.end()) continue;
    told.push_back(node);
    // Attention layers aside: their own outcome says why they still read it.
    if (const Decline read = CheckReadersOf(*graph, *node, IsAttentionOp); !read.ok())
      rewriting.Record(kDeadNodesRule, *node,
                       Outcome::Declined(Because(read.code(), "{} {}", node->op_type(), read.message())));
  }
  rewriting.graph.TrimValueInfo();
}

}  // namespace kvshare::graph
