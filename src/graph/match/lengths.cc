#include "graph/match/lengths.h"

#include "graph/extents.h"

namespace kvshare::graph {

std::string MaskOfSeqlens(const Graph& graph, const std::string& seqlens) {
  const Node* minus = graph.Producer(BeforeCast(graph, seqlens));
  if (!graph.IsOnnx(minus, "Sub") || KnownInts(graph, Input(*minus, 1)) != std::vector<int64_t>{1}) return "";
  const Node* sum = graph.Producer(BeforeCast(graph, Input(*minus, 0)));
  if (!graph.IsOnnx(sum, "ReduceSum")) return "";
  const auto axes = KnownInts(graph, Input(*sum, 1));
  if (axes != std::vector<int64_t>{1} && axes != std::vector<int64_t>{-1}) return "";
  return BeforeCast(graph, Input(*sum, 0));
}

namespace {

Decline Unknown(const char* input, const Layer& source) {
  return Because(DeclineCode::kLengthsUnknown, "the {} of source layer {} is not known to count a mask", input,
                 source.index);
}

Decline Differ(const Layer& source, const std::string& mask, const std::string& counted) {
  return Because(DeclineCode::kLengthsDiffer, "its mask is made from '{}', the lengths of source layer {} from {}",
                 mask, source.index, counted);
}

}  // namespace

bool TotalCounts(const Graph& graph, const std::string& total, const std::string& mask) {
  const auto extent = ExtentOf(graph, total);
  return extent && IsExtent(graph, *extent, mask, 1);
}

Decline CheckLengths(const Layer& source, const std::string& mask) {
  const Graph& graph = *source.graph;
  const std::string counted = MaskOfSeqlens(graph, Input(*source.node, 5));
  if (counted.empty()) return Unknown("seqlens_k", source);
  const auto total = ExtentOf(graph, Input(*source.node, 6));
  if (!total || !total->IsKnown()) return Unknown("total_sequence_length", source);
  if (counted != mask) return Differ(source, mask, fmt::format("'{}'", counted));
  if (IsExtent(graph, *total, mask, 1)) return {};
  return Differ(source, mask,
                total->of.empty() ? fmt::format("the number {}", *total->number)
                                  : fmt::format("extent {} of '{}'", total->axis, total->of));
}

}  // namespace kvshare::graph
