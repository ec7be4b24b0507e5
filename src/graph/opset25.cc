#include "graph/opset25.h"

#include <algorithm>
#include <array>
#include <string_view>

namespace kvshare::graph {
namespace {

constexpr int64_t kOldest = 17;

struct Changed {
  std::string_view op;
  int64_t since;  // the opset from which on a node means what it means in 25, more types aside
};

// Operators whose meaning changed after opset kOldest, with the opset that changed it first.
constexpr std::array kChanged = {
    Changed{"AveragePool", 19},     Changed{"DFT", 20},
    Changed{"GridSample", 20},      Changed{"GroupNormalization", 21},
    Changed{"LpPool", 18},          Changed{"ReduceL1", 18},
    Changed{"ReduceL2", 18},        Changed{"ReduceLogSum", 18},
    Changed{"ReduceLogSumExp", 18}, Changed{"ReduceMax", 18},
    Changed{"ReduceMean", 18},      Changed{"ReduceMin", 18},
    Changed{"ReduceProd", 18},      Changed{"ReduceSumSquare", 18},
    Changed{"Resize", 19},          Changed{"Split", 18},
};

template <typename Imports>
int64_t VersionIn(const Imports& imports) {
  for (const auto& import : imports)
    if (CanonicalDomain(import.domain()).empty()) return import.version();
  return kWindowOpset;  // no node is of ai.onnx
}

template <typename Nodes>
Decline CheckNodes(const Nodes& nodes, int64_t opset) {
  for (const Node& node : nodes) {
    const auto* const changed = std::ranges::find(kChanged, std::string_view(node.op_type()), &Changed::op);
    if (DomainOf(node).empty() && changed != kChanged.end() && opset < changed->since)
      return Because(DeclineCode::kOpsetChanged, "{} is of opset {} and means something else in opset {}; needs {}",
                     Describe(node), opset, kWindowOpset, changed->since);
    for (const auto& attribute : node.attribute()) {
      KVSHARE_RETURN_IF_ERROR(CheckNodes(attribute.g().node(), opset));
      for (const auto& body : attribute.graphs()) KVSHARE_RETURN_IF_ERROR(CheckNodes(body.node(), opset));
    }
  }
  return {};
}

template <typename Imports, typename Nodes>
Decline CheckPart(const Imports& imports, const Nodes& nodes) {
  const int64_t opset = VersionIn(imports);
  if (opset >= kWindowOpset) return {};
  if (opset < kOldest)
    return Because(DeclineCode::kOpsetChanged, "the model imports opset {}, which is not known to be valid in opset {}",
                   opset, kWindowOpset);
  return CheckNodes(nodes, opset);
}

}  // namespace

Decline CheckRaise(const Graph& graph) {
  const onnx::ModelProto& model = graph.model();
  for (const auto& function : model.functions())
    KVSHARE_RETURN_IF_ERROR(CheckPart(function.opset_import(), function.node()));
  return CheckPart(model.opset_import(), model.graph().node());
}

}  // namespace kvshare::graph
