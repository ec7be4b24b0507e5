// GroupQueryAttention(q, empty, empty, past: source.present, ...): upstream's shared form, which appends nothing.
#include "graph/extents.h"
#include "graph/forms/facts.h"

namespace kvshare::graph {
namespace {

enum class Emptiness { kNot, kDynamic, kConstant };

// Key or value [B, 0, Hkv * D].
Emptiness EmptinessOf(const Graph& graph, const std::string& name) {
  const std::string& value = graph.Origin(name);
  if (graph.ConstantTensor(value) != nullptr) {
    const auto shape = graph.Shape(value);
    return shape->size() == 3 && (*shape)[1] == 0 ? Emptiness::kConstant : Emptiness::kNot;
  }
  const Node* node = graph.Producer(value);
  if (graph.IsOnnx(node, "Cast")) node = graph.Producer(graph.Origin(Input(*node, 0)));
  if (!graph.IsOnnx(node, "ConstantOfShape")) return Emptiness::kNot;
  const auto shape = ExtentsOf(graph, Input(*node, 0));
  if (!shape || shape->size() != 3 || (*shape)[1].number != 0 || !(*shape)[2].number) return Emptiness::kNot;
  const Extent& batch = shape->front();
  if (!batch.IsKnown()) return Emptiness::kNot;
  if (batch.of.empty()) return Emptiness::kConstant;
  return batch.axis == 0 ? Emptiness::kDynamic : Emptiness::kNot;
}

}  // namespace

bool ReadEmptyKeyGqa(const LayersBefore& before, Layer& layer) {
  const Graph& graph = *layer.graph;
  const Node& node = *layer.node;
  if (node.op_type() != "GroupQueryAttention" || Input(node, 1).empty() || Input(node, 3).empty()) return false;
  const Emptiness empty = EmptinessOf(graph, Input(node, 1));
  if (empty == Emptiness::kNot) return false;
  ReadGqaFacts(layer);
  layer.constant_empty = empty == Emptiness::kConstant;
  Borrow(before, layer, {graph.Origin(Input(node, 3))}, {graph.Origin(Input(node, 4))});
  if (Input(node, 2) != Input(node, 1) && EmptinessOf(graph, Input(node, 2)) == Emptiness::kNot)
    layer.trouble = Because(DeclineCode::kKeyValueDiffer, "key has length 0 and value has not");
  return true;
}

}  // namespace kvshare::graph
