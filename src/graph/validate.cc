#include "graph/validate.h"

#include <fmt/format.h>

namespace kvshare::graph {

Status Validate(const Graph& graph) {
  std::unordered_set<std::string> known;
  const auto& main = graph.model().graph();
  for (const auto& input : main.input()) known.insert(input.name());
  for (const auto& initializer : main.initializer()) known.insert(initializer.name());
  for (const auto& initializer : main.sparse_initializer()) known.insert(initializer.values().name());
  std::unordered_set<std::string> domains;
  for (const auto& import : graph.model().opset_import())
    domains.insert(import.domain() == "ai.onnx" ? "" : import.domain());

  for (const Node* node : graph.nodes()) {
    const std::string domain = node->domain() == "ai.onnx" ? "" : node->domain();
    if (!domains.contains(domain) && !graph.IsModelFunction(*node))
      return Status::InvalidInput(
          fmt::format("{}: domain '{}' is not imported; needs an opset_import", Describe(*node), domain));
    for (const auto& name : ReadNames(*node))
      if (!known.contains(name))
        return Status::InvalidInput(fmt::format("{}: input '{}' is not produced before", Describe(*node), name));
    for (const auto& output : node->output())
      if (!output.empty() && !known.insert(output).second)
        return Status::InvalidInput(fmt::format("{}: output '{}' is produced twice", Describe(*node), output));
  }
  for (const auto& output : main.output())
    if (!known.contains(output.name()))
      return Status::InvalidInput(fmt::format("model: graph output '{}' is produced by no node", output.name()));
  return {};
}

}  // namespace kvshare::graph
