// How a layer's key and value come from another layer's presents.
#include <fmt/ranges.h>

#include "graph/extents.h"
#include "graph/forms/facts.h"

namespace kvshare::graph {
namespace {

// [B, Hkv, T, D] -> Unsqueeze [2] -> Expand [B, Hkv, G, T, D] -> Reshape [B, Hkv * G, T, D], which ends in `value`.
std::optional<Trace> TraceExpansion(const Graph& graph, const std::string& value) {
  const Node* reshape = graph.Producer(graph.Origin(value));
  if (!graph.IsOnnx(reshape, "Reshape")) return std::nullopt;
  const Node* expand = graph.Producer(graph.Origin(Input(*reshape, 0)));
  if (!graph.IsOnnx(expand, "Expand")) return std::nullopt;
  const Node* unsqueeze = graph.Producer(graph.Origin(Input(*expand, 0)));
  if (!graph.IsOnnx(unsqueeze, "Unsqueeze")) return std::nullopt;
  const auto axes = KnownInts(graph, Input(*unsqueeze, 1));
  const auto wide = ExtentsOf(graph, Input(*expand, 1));
  const auto flat = ExtentsOf(graph, Input(*reshape, 1));
  if (axes != std::vector<int64_t>{2} && axes != std::vector<int64_t>{-3}) return std::nullopt;
  if (!wide || wide->size() != 5 || !flat || flat->size() != 4) return std::nullopt;
  const auto group = (*wide)[2].number;
  const auto heads = (*flat)[1].number;
  if (!group || !heads || *group < 1 || *heads < 1 || *heads % *group != 0) return std::nullopt;
  return Trace{graph.Origin(Input(*unsqueeze, 0)), {reshape, expand, unsqueeze}, *group, *heads / *group};
}

// BNSH -> Transpose [0,2,1,3] -> Reshape [0,0,-1], or nothing at all; else what is odd.
Decline OddSteps(const Graph& graph, const Trace& trace, int64_t width) {
  if (trace.expansion > 1)
    return Because(DeclineCode::kKeyIsExpanded, "the graph repeats each head of '{}' {} times; needs it as it is",
                   trace.value, trace.expansion);
  if (trace.steps.empty()) return {};
  if (trace.steps.size() != 2 || !graph.IsOnnx(trace.steps[0], "Reshape") || !graph.IsOnnx(trace.steps[1], "Transpose"))
    return Because(DeclineCode::kKeyIsTurned, "{} nodes lie between '{}' and it; needs Transpose then Reshape",
                   trace.steps.size(), trace.value);
  const auto perm = IntsAttribute(*trace.steps[1], "perm");
  if (perm != std::vector<int64_t>{0, 2, 1, 3})
    return Because(DeclineCode::kKeyIsTurned, "{} has perm [{}]; needs [0,2,1,3]", Describe(*trace.steps[1]),
                   perm ? fmt::format("{}", fmt::join(*perm, ",")) : "absent");
  const auto shape = graph.Ints(graph.Origin(Input(*trace.steps[0], 1)));
  const bool folds = shape && shape->size() == 3 && (*shape)[0] == 0 && (*shape)[1] == 0 &&
                     ((*shape)[2] == -1 || (width > 0 && (*shape)[2] == width)) &&
                     !Differs(*trace.steps[0], "allowzero");
  if (!folds)
    return Because(DeclineCode::kKeyIsTurned, "{} has shape [{}]; needs [0,0,-1]", Describe(*trace.steps[0]),
                   shape ? fmt::format("{}", fmt::join(*shape, ",")) : "computed");
  return {};
}

// Why a layer cannot borrow `key` and `value`, presents of the layers `from_key` and `from_value`, if it cannot.
Decline OddSource(const LayersBefore& before, const Layer& layer, const Trace& key, const Trace& value, int from_key,
                  int from_value) {
  if (from_key != from_value)
    return Because(DeclineCode::kKeyValueDiffer, "key is borrowed from layer {}, value from layer {}", from_key,
                   from_value);
  const Layer& source = before[from_key];
  if (key.value != Output(*source.node, 1) || value.value != Output(*source.node, 2))
    return Because(DeclineCode::kKeyValueDiffer, "key and value of layer {} are borrowed crosswise", source.index);
  if (source.IsShared()) return Because(DeclineCode::kSourceIsShared, "source layer {} is itself shared", source.index);
  const int64_t width = layer.kv_heads * layer.head_size;
  KVSHARE_RETURN_IF_ERROR(OddSteps(*layer.graph, key, width));
  return OddSteps(*layer.graph, value, width);
}

}  // namespace

Trace BeforeExpansion(const Graph& graph, const std::string& value) {
  auto expanded = TraceExpansion(graph, value);
  return expanded ? *std::move(expanded) : Trace{graph.Origin(value)};
}

Trace TraceUp(const Graph& graph, const std::string& value) {
  Trace trace = BeforeExpansion(graph, value);
  if (!trace.steps.empty()) return trace;
  const Node* node = graph.Producer(trace.value);
  while (graph.IsOnnx(node, "Transpose") || graph.IsOnnx(node, "Reshape")) {
    trace.steps.push_back(node);
    trace.value = graph.Origin(Input(*node, 0));
    node = graph.Producer(trace.value);
  }
  return trace;
}

void Borrow(const LayersBefore& before, Layer& layer, const Trace& key, const Trace& value) {
  const Graph& graph = *layer.graph;
  layer.kind = LayerKind::kShared;
  layer.key = key.value;
  layer.value = value.value;
  layer.copies = key.steps;
  layer.copies.insert(layer.copies.end(), value.steps.begin(), value.steps.end());
  layer.expansion = key.expansion;
  if (layer.head_size == 0) layer.head_size = HeadSizeFrom(graph, layer.key);
  if (graph.IsInput(key.value) && graph.IsInput(value.value)) {
    const int64_t width = layer.kv_heads * layer.head_size;
    layer.trouble = OddSteps(graph, key, width);
    if (layer.trouble.ok()) layer.trouble = OddSteps(graph, value, width);
    return;
  }
  const auto from_key = before.MakerOf(graph, key.value);
  const auto from_value = before.MakerOf(graph, value.value);
  if (!from_key || !from_value) {
    layer.trouble = Because(DeclineCode::kKeyIsNoPresent, "{} '{}' is not a layer's present",
                            !from_key ? "key" : "value", !from_key ? key.value : value.value);
    return;
  }
  layer.source = *from_key;
  if (layer.head_size == 0) layer.head_size = before[layer.source].head_size;
  layer.trouble = OddSource(before, layer, key, value, *from_key, *from_value);
}

}  // namespace kvshare::graph
