#include "graph/validate.h"

#include <fmt/format.h>

namespace kvshare::graph {
namespace {

using Names = std::unordered_set<std::string>;

// The values that a graph has produced so far, and those of the graphs around it. A body refers to the outer ones:
// a model may have thousands of bodies.
struct Scope {
  const Scope* outer;
  Names names = {};

  bool Knows(const std::string& name) const { return names.contains(name) || (outer != nullptr && outer->Knows(name)); }
};

Status ValidateGraph(const Graph& graph, const Scope* outer, const Names& domains) {
  const auto& proto = graph.proto();
  Scope known{outer};
  for (const auto& input : proto.input()) known.names.insert(input.name());
  for (const auto& initializer : proto.initializer()) known.names.insert(initializer.name());
  for (const auto& initializer : proto.sparse_initializer()) known.names.insert(initializer.values().name());
  Names made;
  for (const Node* node : graph.nodes()) {
    const std::string& domain = DomainOf(*node);
    if (!domains.contains(domain) && !graph.IsModelFunction(*node))
      return Status::InvalidInput(
          fmt::format("{}: domain '{}' is not imported; needs an opset_import", Describe(*node), domain));
    for (const auto& name : ReadNames(*node))
      if (!known.Knows(name))
        return Status::InvalidInput(fmt::format("{}: input '{}' is not produced before", Describe(*node), name));
    for (const Graph* body : graph.BodiesOf(*node)) KVSHARE_RETURN_IF_ERROR(ValidateGraph(*body, &known, domains));
    for (const auto& output : node->output()) {
      if (!output.empty() && !made.insert(output).second)
        return Status::InvalidInput(fmt::format("{}: output '{}' is produced twice", Describe(*node), output));
      known.names.insert(output);
    }
  }
  for (const auto& output : proto.output())
    if (!known.Knows(output.name()))
      return Status::InvalidInput(fmt::format("{}: graph output '{}' is produced by no node",
                                              graph.place().empty() ? "model" : graph.place(), output.name()));
  return {};
}

}  // namespace

Status Validate(const Graph& graph) {
  // ONNX Runtime imports these for every model, whatever it says itself.
  Names domains = {"",
                   "ai.onnx.ml",
                   "ai.onnx.preview.training",
                   kMicrosoft,
                   "com.microsoft.experimental",
                   "com.microsoft.nchwc",
                   "com.ms.internal.nhwc",
                   "org.pytorch.aten"};
  for (const auto& import : graph.model().opset_import()) domains.insert(CanonicalDomain(import.domain()));
  return ValidateGraph(graph, nullptr, domains);
}

}  // namespace kvshare::graph
