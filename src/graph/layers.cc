#include "graph/layers.h"

#include "graph/forms/facts.h"

namespace kvshare::graph {
namespace {

// Why a layer cannot be edited whatever its form: where it lies.
Decline OddPlace(const Graph& graph) {
  if (graph.IsFunction())
    return Because(DeclineCode::kInFunction,
                   "lies in {} of the model, which is not looked through; inline it first (onnx.inliner)",
                   graph.place());
  if (!graph.shadowed().empty())
    return Because(DeclineCode::kInBody,
                   "lies in a body that has a '{}' beside that of the graph around it; give it a name of its own",
                   graph.shadowed());
  return {};
}

void Add(LayersBefore& found, const Graph& graph, const Node* node) {
  Layer layer;
  layer.index = found.size();
  layer.node = node;
  layer.graph = &graph;
  for (const Form& form : AllForms())
    if (form.read(found, layer)) {
      layer.written = form.name;
      break;
    }
  if (Decline odd = OddPlace(graph); !odd.ok()) layer.trouble = std::move(odd);
  found.Add(std::move(layer));
}

// The layers of `graph`, with those of a node's bodies where the node stands.
void Walk(LayersBefore& found, const Graph& graph) {
  for (const Node* node : graph.nodes()) {
    if (IsAttentionOp(*node) && !graph.IsModelFunction(*node)) Add(found, graph, node);
    for (const Graph* body : graph.BodiesOf(*node)) Walk(found, *body);
  }
}

}  // namespace

bool HasPast(const Node& attention) { return !Input(attention, 4).empty() || !Input(attention, 5).empty(); }

const std::string& MaskValueOf(const Layer& layer) { return Input(*layer.node, layer.IsGqa() ? 10 : 3); }

std::optional<int> LayersBefore::MakerOf(const Graph& graph, const std::string& value) const {
  const auto found = makers_.find({graph.OwnerOf(value), value});
  return found == makers_.end() ? std::nullopt : std::optional(found->second);
}

std::optional<int> LayersBefore::TakerOf(const Graph& graph, const std::string& key, const std::string& value) const {
  const auto found = takers_.find({graph.OwnerOf(key), key, value});
  return found == takers_.end() ? std::nullopt : std::optional(found->second);
}

void LayersBefore::Add(Layer layer) {
  const Graph& graph = *layer.graph;
  const Node& node = *layer.node;
  for (const int output : {1, 2})
    if (!Output(node, output).empty()) makers_[{&graph, node.output(output)}] = layer.index;
  if (!layer.IsGqa() && !layer.IsShared() && Input(node, 4).empty()) {
    const std::string key = BeforeExpansion(graph, Input(node, 1)).value;
    takers_.try_emplace({graph.OwnerOf(key), key, BeforeExpansion(graph, Input(node, 2)).value}, layer.index);
  }
  layers_.push_back(std::move(layer));
}

std::string WindowText(int64_t window) { return window == kFullWindow ? "full" : fmt::format("{}", window); }

std::vector<Layer> FindLayers(const Graph& graph) {
  LayersBefore found;
  Walk(found, graph);
  for (const auto& function : graph.functions()) Walk(found, *function);
  return found.Take();
}

}  // namespace kvshare::graph
