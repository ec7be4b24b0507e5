#include "graph/layers.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <unordered_map>

#include "graph/masks.h"

namespace kvshare::graph {
namespace {

bool IsPlain(const Node* node, std::string_view op) {
  return node != nullptr && node->domain().empty() && node->op_type() == op;
}

// A value followed up through Transpose and Reshape.
struct Trace {
  std::string value;
  std::vector<Node*> steps;  // from the attention's side
};

Trace TraceUp(const Graph& graph, const std::string& value) {
  Trace trace{value, {}};
  Node* node = graph.Producer(trace.value);
  while (IsPlain(node, "Transpose") || IsPlain(node, "Reshape")) {
    trace.steps.push_back(node);
    trace.value = Input(*node, 0);
    node = graph.Producer(trace.value);
  }
  return trace;
}

// BNSH -> Transpose [0,2,1,3] -> Reshape [0,0,-1], or nothing at all; else what is odd.
std::string OddSteps(const Graph& graph, const Trace& trace, int64_t width) {
  if (trace.steps.empty()) return "";
  if (trace.steps.size() != 2 || !IsPlain(trace.steps[0], "Reshape") || !IsPlain(trace.steps[1], "Transpose"))
    return fmt::format("{} nodes lie between '{}' and it; needs Transpose then Reshape", trace.steps.size(),
                       trace.value);
  const auto perm = IntsAttribute(*trace.steps[1], "perm");
  if (perm != std::vector<int64_t>{0, 2, 1, 3})
    return fmt::format("{} has perm [{}]; needs [0,2,1,3]", Describe(*trace.steps[1]),
                       perm ? fmt::format("{}", fmt::join(*perm, ",")) : "absent");
  const auto shape = graph.Ints(Input(*trace.steps[0], 1));
  const bool folds = shape && shape->size() == 3 && (*shape)[0] == 0 && (*shape)[1] == 0 &&
                     ((*shape)[2] == -1 || (width > 0 && (*shape)[2] == width)) &&
                     IntAttribute(*trace.steps[0], "allowzero", 0) == 0;
  if (!folds)
    return fmt::format("{} has shape [{}]; needs [0,0,-1]", Describe(*trace.steps[0]),
                       shape ? fmt::format("{}", fmt::join(*shape, ",")) : "computed");
  return "";
}

enum class Emptiness { kNot, kDynamic, kConstant };

// Key or value of length 0, as upstream's shared form has it.
Emptiness EmptinessOf(const Graph& graph, const std::string& value) {
  if (graph.ConstantTensor(value) != nullptr) {
    const auto shape = graph.Shape(value);
    return shape->size() == 3 && (*shape)[1] == 0 ? Emptiness::kConstant : Emptiness::kNot;
  }
  const Node* node = graph.Producer(value);
  if (IsPlain(node, "Cast")) node = graph.Producer(Input(*node, 0));
  if (!IsPlain(node, "ConstantOfShape")) return Emptiness::kNot;
  const Node* concat = graph.Producer(Input(*node, 0));
  if (const auto fixed = graph.Ints(Input(*node, 0)))
    return fixed->size() == 3 && (*fixed)[1] == 0 ? Emptiness::kConstant : Emptiness::kNot;
  if (!IsPlain(concat, "Concat") || IntAttribute(*concat, "axis", 1) != 0 || concat->input_size() < 2 ||
      ShapeExtentOf(graph, concat->input(0), 0) == nullptr)
    return Emptiness::kNot;
  std::vector<int64_t> rest;
  for (int i = 1; i < concat->input_size(); ++i) {
    const auto part = graph.Ints(concat->input(i));
    if (!part) return Emptiness::kNot;
    rest.insert(rest.end(), part->begin(), part->end());
  }
  return rest.size() == 2 && rest[0] == 0 ? Emptiness::kDynamic : Emptiness::kNot;
}

int64_t HeadSizeFrom(const Graph& graph, const std::string& bnsh) {
  const auto shape = graph.Shape(bnsh);
  return shape && shape->size() == 4 ? std::max<int64_t>((*shape)[3], 0) : 0;
}

// Finds the layers one after another; each may borrow from those before.
class Finder {
 public:
  explicit Finder(const Graph& graph) : graph_(graph) {}

  void Add(Node* node) {
    Layer layer;
    layer.index = static_cast<int>(layers_.size());
    layer.node = node;
    if (node->op_type() == "GroupQueryAttention") {
      ReadGqa(layer);
    } else {
      ReadAttention(layer);
    }
    if (layer.head_size == 0 && layer.IsShared()) layer.head_size = HeadSizeFrom(graph_, layer.key);
    if (layer.head_size == 0 && layer.IsShared() && layer.source >= 0)
      layer.head_size = layers_[static_cast<size_t>(layer.source)].head_size;
    for (const int output : {1, 2})
      if (!Output(*node, output).empty()) maker_[node->output(output)] = layer.index;
    layers_.push_back(std::move(layer));
  }

  std::vector<Layer> Take() { return std::move(layers_); }

 private:
  void ReadGqa(Layer& layer) {
    const Node& node = *layer.node;
    layer.query_heads = IntAttribute(node, "num_heads", 0);
    layer.kv_heads = IntAttribute(node, "kv_num_heads", 0);
    const int64_t window = IntAttribute(node, "local_window_size", kFullWindow);
    layer.window = window < 0 ? kFullWindow : window;
    if (layer.IsKvshare() && !Input(node, kExternalKey).empty()) {
      Borrow(layer, {Input(node, kExternalKey), {}}, {Input(node, kExternalValue), {}});
      return;
    }
    const Emptiness empty = Input(node, 1).empty() ? Emptiness::kNot : EmptinessOf(graph_, Input(node, 1));
    if (empty != Emptiness::kNot && !Input(node, 3).empty()) {
      layer.constant_empty = empty == Emptiness::kConstant;
      Borrow(layer, {Input(node, 3), {}}, {Input(node, 4), {}});
      if (Input(node, 2) != Input(node, 1) && EmptinessOf(graph_, Input(node, 2)) == Emptiness::kNot)
        layer.trouble = "key has length 0 and value has not";
      return;
    }
    layer.head_size = HeadSizeFrom(graph_, Output(node, 1));
    if (layer.head_size == 0) layer.head_size = HeadSizeFrom(graph_, Input(node, 3));
  }

  void ReadAttention(Layer& layer) {
    const Node& node = *layer.node;
    layer.form = LayerForm::kAttention;
    layer.query_heads = IntAttribute(node, "q_num_heads", 0);
    layer.kv_heads = IntAttribute(node, "kv_num_heads", 0);
    layer.window = IntAttribute(node, "local_window_size", kFullWindow);
    if (!Input(node, 3).empty()) {
      const auto meaning = ReadMask(graph_, Input(node, 3));
      if (meaning.ok()) {
        layer.window = meaning->window;
      } else {
        layer.mask_trouble = meaning.status().message();
      }
    }
    Trace key = TraceUp(graph_, Input(node, 1));
    Trace value = TraceUp(graph_, Input(node, 2));
    const bool borrows = maker_.contains(key.value) || maker_.contains(value.value) ||
                         (graph_.IsInput(key.value) && graph_.IsInput(value.value) && Input(node, 4).empty());
    if (borrows) {
      layer.head_size = HeadSizeFrom(graph_, key.value);
      Borrow(layer, key, value);
      return;
    }
    layer.head_size = HeadSizeFrom(graph_, Output(node, 1));
    if (layer.head_size == 0) layer.head_size = HeadSizeFrom(graph_, Input(node, 4));
  }

  void Borrow(Layer& layer, const Trace& key, const Trace& value) {
    layer.kind = LayerKind::kShared;
    layer.key = key.value;
    layer.value = value.value;
    for (Node* step : key.steps) layer.copies.push_back(step);
    for (Node* step : value.steps) layer.copies.push_back(step);
    if (graph_.IsInput(key.value) && graph_.IsInput(value.value)) {
      layer.trouble = "borrows from a graph input, not from a layer of this model";
      return;
    }
    const auto from_key = maker_.find(key.value);
    const auto from_value = maker_.find(value.value);
    if (from_key == maker_.end() || from_value == maker_.end()) {
      layer.trouble = fmt::format("{} '{}' is not a layer's present", from_key == maker_.end() ? "key" : "value",
                                  from_key == maker_.end() ? key.value : value.value);
      return;
    }
    layer.source = from_key->second;
    const Layer& source = layers_[static_cast<size_t>(layer.source)];
    if (layer.head_size == 0) layer.head_size = source.head_size;
    if (from_key->second != from_value->second) {
      layer.trouble =
          fmt::format("key is borrowed from layer {}, value from layer {}", from_key->second, from_value->second);
    } else if (key.value != Output(*source.node, 1) || value.value != Output(*source.node, 2)) {
      layer.trouble = fmt::format("key and value of layer {} are borrowed crosswise", layer.source);
    } else if (source.IsShared()) {
      layer.trouble = fmt::format("source layer {} is itself shared", layer.source);
    } else {
      const int64_t width = layer.kv_heads * layer.head_size;
      layer.trouble = OddSteps(graph_, key, width);
      if (layer.trouble.empty()) layer.trouble = OddSteps(graph_, value, width);
    }
  }

  const Graph& graph_;
  std::vector<Layer> layers_;
  std::unordered_map<std::string, int> maker_;  // present value -> layer
};

bool IsAttentionOp(const Node& node) {
  if (node.op_type() == "GroupQueryAttention") return node.domain() == kMicrosoft || node.domain() == kKvshare;
  return node.op_type() == "Attention" && (node.domain().empty() || node.domain() == kKvshare);
}

}  // namespace

std::string WindowText(int64_t window) { return window == kFullWindow ? "full" : fmt::format("{}", window); }

std::vector<Layer> FindLayers(const Graph& graph) {
  Finder finder(graph);
  for (Node* node : graph.nodes())
    if (IsAttentionOp(*node) && !graph.IsModelFunction(*node)) finder.Add(node);
  return finder.Take();
}

}  // namespace kvshare::graph
