// Graph inputs that nothing reads, on request only: whoever feeds the model may name them.
#include "graph/rules/rule.h"

namespace kvshare::graph {

void RunPruneInputs(Rewriting& rewriting) {
  Graph& graph = rewriting.graph;
  std::vector<std::string> unread;
  for (const auto& input : graph.model().graph().input())
    if (!graph.IsRead(input.name())) unread.push_back(input.name());
  for (const std::string& name : unread) {
    graph.RemoveInput(name);
    rewriting.outcomes.push_back({kPruneInputsRule, name, true, "", ""});
  }
}

}  // namespace kvshare::graph
