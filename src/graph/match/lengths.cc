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

Decline CheckWholeLengths(const Layer& source, const Sum& keys) {
  const Graph& graph = *source.graph;
  const Node* expand = graph.Producer(BeforeCast(graph, Input(*source.node, 5)));
  const bool is_whole = graph.IsOnnx(expand, "Expand") && SumOf(graph, Input(*expand, 0)) == Subtract(keys, Sum{1}) &&
                        SumOf(graph, Input(*source.node, 6)) == keys;
  return is_whole ? Decline() : Unknown("seqlens_k", source);
}

std::string BeforeFlat(const Graph& graph, const std::string& flat) {
  const Node* node = graph.Producer(graph.Origin(flat));
  const bool is_cast = graph.IsOnnx(node, "Cast") && IntAttribute(*node, "to") == onnx::TensorProto::INT64;
  const Node* reshape = is_cast ? graph.Producer(graph.Origin(Input(*node, 0))) : node;
  if (!graph.IsOnnx(reshape, "Reshape") || KnownInts(graph, Input(*reshape, 1)) != std::vector<int64_t>{-1}) return "";
  const std::string& value = Input(*reshape, 0);
  const Node* maker = graph.Producer(value);
  const bool is_int32 = graph.ElementType(value) == onnx::TensorProto::INT32 ||
                        (graph.IsOnnx(maker, "Cast") && IntAttribute(*maker, "to") == onnx::TensorProto::INT32);
  return is_int32 ? value : "";
}

std::optional<Lengths> LengthsOfEnds(const Graph& graph, const std::string& ends, const Sum& queries) {
  const Node* chosen = graph.Producer(graph.Origin(ends));
  if (!graph.IsOnnx(chosen, "Where") || SumOf(graph, Input(*chosen, 1)) != queries) return std::nullopt;
  const Node* is_prompt = graph.Producer(graph.Origin(Input(*chosen, 0)));
  const Node* next = graph.Producer(graph.Origin(Input(*chosen, 2)));
  if (!graph.IsOnnx(is_prompt, "Equal") || SumOf(graph, Input(*is_prompt, 0)) != queries) return std::nullopt;
  if (!graph.IsOnnx(next, "Add") || KnownInts(graph, Input(*next, 1)) != std::vector<int64_t>{1}) return std::nullopt;
  Lengths lengths{BeforeFlat(graph, Input(*next, 0)), BeforeFlat(graph, Input(*is_prompt, 1))};
  return lengths.seqlens.empty() || lengths.total.empty() ? std::nullopt : std::optional(std::move(lengths));
}

bool IsLastRow(const Graph& graph, const std::string& seqlens, const std::string& ends) {
  const Node* minus = graph.Producer(BeforeCast(graph, seqlens));
  return graph.IsOnnx(minus, "Sub") && graph.Origin(Input(*minus, 0)) == graph.Origin(ends) &&
         KnownInts(graph, Input(*minus, 1)) == std::vector<int64_t>{1};
}

}  // namespace kvshare::graph
