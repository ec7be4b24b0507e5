#include "graph/rules/turn_attention.h"

#include "graph/match/attention.h"

namespace kvshare::graph {
namespace {

std::string MakePadding(Rewriting& rewriting, const Layer& layer, const MaskMeaning& mask) {
  Graph& graph = rewriting.GraphOf(layer);
  const auto make = [&](const char* op, const std::vector<std::string>& inputs, const char* what) -> const Node& {
    return graph.InsertBefore(*layer.node, op, inputs, {graph.FreshName(mask.key_mask + what)});
  };
  const auto ints = [&](const char* what, const std::vector<int64_t>& values) {
    std::string name = graph.FreshName(mask.key_mask + what);
    graph.AddInts(name, values);
    return name;
  };
  std::string flags = mask.key_mask;
  if (mask.columns && SumOfExtent(graph, mask.key_mask, 1) != mask.columns->keys) {
    const auto key = graph.Shape(Input(*layer.node, 1));
    const int64_t axis = key && key->size() == 3 ? 1 : 2;
    const Node& keys = make("Shape", {Input(*layer.node, 1)}, "_keys");
    graph.SetInt(keys, "start", axis);
    graph.SetInt(keys, "end", axis + 1);
    flags =
        make("Slice", {mask.key_mask, ints("_first", {0}), keys.output(0), ints("_axis", {1})}, "_columns").output(0);
  }
  if (graph.ElementType(mask.key_mask) != onnx::TensorProto::BOOL) {
    const Node& cast = make("Cast", {flags}, "_flags");
    graph.SetInt(cast, "to", onnx::TensorProto::BOOL);
    flags = cast.output(0);
  }
  return make("Unsqueeze", {flags, ints("_axes", {1, 2})}, "_padding").output(0);
}

}  // namespace

std::string PaddingOf(Rewriting& rewriting, const Layer& layer, const MaskMeaning& mask) {
  const std::string what =
      fmt::format("padding of '{}' {}", mask.key_mask, mask.columns ? TextOf(mask.columns->keys) : "whole");
  return rewriting.Once(layer, what, [&] { return MakePadding(rewriting, layer, mask); });
}

void TurnIntoKvshareAttention(Rewriting& rewriting, const Layer& layer, const MaskMeaning& mask) {
  Graph& graph = rewriting.GraphOf(layer);
  const Node& node = *layer.node;
  for (const int input : {3, 6}) rewriting.released.push_back({&graph, Input(node, input)});
  std::vector<std::string> inputs(node.input().begin(), node.input().end());
  inputs.resize(kKeyMask + 1);
  inputs[3] = inputs[6] = "";  // all keys end at the last where nothing else is said
  if (mask.absent) {
    // Nothing is hidden.
  } else if (!mask.columns) {
    inputs[kKeyMask] = mask.key_mask;
  } else if (mask.padding) {
    inputs[3] = PaddingOf(rewriting, layer, mask);
  }
  while (inputs.back().empty()) inputs.pop_back();
  graph.SetInputs(node, inputs);
  if (!mask.absent) graph.SetInt(node, "is_causal", 1);
  if (layer.window != kFullWindow) graph.SetInt(node, "local_window_size", layer.window);
  for (const char* bound : {"left_window_size", "right_window_size"})
    if (Differs(node, bound)) graph.SetInt(node, bound, -1);  // in local_window_size and is_causal
  graph.SetOp(node, kKvshare, "Attention");
  graph.RequireImport(kKvshare, 1);
}

Outcome TurnAsItIs(Rewriting& rewriting, const Layer& layer, std::string note) {
  if (Decline odd = CheckWithItsMask(rewriting.layers, layer); !odd.ok()) return Outcome::Declined(std::move(odd));
  Graph& graph = rewriting.GraphOf(layer);
  const Node& node = *layer.node;
  if (layer.IsShared() && !layer.made_outside) {
    for (const int input : {1, 2}) rewriting.released.push_back({&graph, Input(node, input)});
    graph.SetInput(node, 1, layer.key);
    graph.SetInput(node, 2, layer.value);
    graph.SetOutputs(node, {node.output(0)});
  }
  graph.SetOp(node, kKvshare, "Attention");
  graph.RequireImport(kKvshare, 1);
  return Outcome::Applied(std::move(note));
}

Outcome TurnWithItsMask(Rewriting& rewriting, const Layer& layer) {
  return TurnAsItIs(rewriting, layer,
                    "masks that show more than causality and a window, such as the tokens of an image to each other, "
                    "stay as they are");
}

}  // namespace kvshare::graph
