#include <algorithm>

#include "graph/masks/constant.h"
#include "graph/masks/dialect.h"

namespace kvshare::graph {
namespace {

bool HasCount(const Graph& graph, const std::string& mask) {
  return std::ranges::any_of(MaskNodes(graph, mask), [&](const Node* node) { return graph.IsOnnx(node, "CumSum"); });
}

// Where a tool has folded the columns, what is made of them is left.
bool HasColumns(const Graph& graph, const std::string& mask) {
  return IsConstantMask(graph, mask) || std::ranges::any_of(MaskNodes(graph, mask), [&](const Node* node) {
           return graph.IsOnnx(node, "Range") || graph.IsOnnx(node, "GatherND") ||
                  std::ranges::any_of(node->input(), [&](const auto& input) {
                    return graph.ElementType(input) == onnx::TensorProto::BOOL && IsConstantMask(graph, input);
                  });
         });
}

}  // namespace

const std::vector<Dialect>& AllDialects() {
  static const std::vector<Dialect> dialects = {{"cumsum", HasCount, ReadCumSumMask},
                                                {"columns", HasColumns, ReadColumnMask}};
  return dialects;
}

}  // namespace kvshare::graph
