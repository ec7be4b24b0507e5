#include "graph/layers.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <limits>
#include <map>
#include <optional>
#include <tuple>
#include <utility>

#include "graph/masks.h"

namespace kvshare::graph {
namespace {

// A value followed up through Transpose and Reshape.
struct Trace {
  std::string value;
  std::vector<Node*> steps;  // from the attention's side
};

Trace TraceUp(const Graph& graph, const std::string& value) {
  Trace trace{value, {}};
  Node* node = graph.Producer(trace.value);
  while (graph.IsOnnx(node, "Transpose") || graph.IsOnnx(node, "Reshape")) {
    trace.steps.push_back(node);
    trace.value = Input(*node, 0);
    node = graph.Producer(trace.value);
  }
  return trace;
}

// BNSH -> Transpose [0,2,1,3] -> Reshape [0,0,-1], or nothing at all; else what is odd.
std::string OddSteps(const Graph& graph, const Trace& trace, int64_t width) {
  if (trace.steps.empty()) return "";
  if (trace.steps.size() != 2 || !graph.IsOnnx(trace.steps[0], "Reshape") || !graph.IsOnnx(trace.steps[1], "Transpose"))
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
  if (graph.IsOnnx(node, "Cast")) node = graph.Producer(Input(*node, 0));
  if (!graph.IsOnnx(node, "ConstantOfShape")) return Emptiness::kNot;
  const Node* concat = graph.Producer(Input(*node, 0));
  if (const auto fixed = graph.Ints(Input(*node, 0)))
    return fixed->size() == 3 && (*fixed)[1] == 0 ? Emptiness::kConstant : Emptiness::kNot;
  if (!graph.IsOnnx(concat, "Concat") || IntAttribute(*concat, "axis", 1) != 0 || concat->input_size() < 2 ||
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

// A number of heads or channels; 0, not known, for what no tensor can have, so that products of two stay in range.
int64_t Extent(int64_t value) { return value > 0 && value <= std::numeric_limits<int32_t>::max() ? value : 0; }

int64_t HeadSizeFrom(const Graph& graph, const std::string& bnsh) {
  const auto shape = graph.Shape(bnsh);
  return shape && shape->size() == 4 ? Extent((*shape)[3]) : 0;
}

// Of a 3-D value that holds `heads` heads side by side.
int64_t HeadSizeIn(const Graph& graph, const std::string& folded, int64_t heads) {
  const auto shape = graph.Shape(folded);
  if (!shape || shape->size() != 3 || heads <= 0 || (*shape)[2] % heads != 0) return 0;
  return Extent((*shape)[2] / heads);
}

// The extents of a query, key or value of rank 4; nothing where its rank is another, or not known.
std::optional<std::vector<int64_t>> Bnsh(const Graph& graph, const std::string& value) {
  auto shape = graph.Shape(value);
  return shape && shape->size() == 4 ? std::move(shape) : std::nullopt;
}

// Finds the layers one after another; each may borrow from those before.
class Finder {
 public:
  // The layers of `graph`, with those of a node's bodies where the node stands.
  void Walk(const Graph& graph) {
    for (Node* node : graph.nodes()) {
      if (IsAttentionOp(*node) && !graph.IsModelFunction(*node)) Add(graph, node);
      for (const Graph* body : graph.BodiesOf(*node)) Walk(*body);
    }
  }

  std::vector<Layer> Take() { return std::move(layers_); }

 private:
  void Add(const Graph& graph, Node* node) {
    Layer layer;
    layer.index = static_cast<int>(layers_.size());
    layer.node = node;
    layer.graph = &graph;
    if (node->op_type() == "GroupQueryAttention") {
      ReadGqa(layer);
    } else {
      ReadAttention(layer);
    }
    if (layer.head_size == 0 && layer.IsShared()) layer.head_size = HeadSizeFrom(graph, layer.key);
    if (layer.head_size == 0 && layer.IsShared() && layer.source >= 0)
      layer.head_size = layers_[static_cast<size_t>(layer.source)].head_size;
    for (const int output : {1, 2})
      if (!Output(*node, output).empty()) maker_[{&graph, node->output(output)}] = layer.index;
    if (graph.IsFunction()) {
      layer.trouble = fmt::format(
          "lies in {} of the model, which is not looked through; inline it first (onnx.inliner)", graph.place());
    } else if (!graph.shadowed().empty()) {
      layer.trouble =
          fmt::format("lies in a body that has a '{}' beside that of the graph around it; give it a name of its own",
                      graph.shadowed());
    }
    layers_.push_back(std::move(layer));
  }

  // The layer whose present `value` is, as `graph` sees it; nothing if it is none's.
  std::optional<int> MakerOf(const Graph& graph, const std::string& value) const {
    const auto found = maker_.find({graph.OwnerOf(value), value});
    return found == maker_.end() ? std::nullopt : std::optional(found->second);
  }

  void ReadGqa(Layer& layer) {
    const Graph& graph = *layer.graph;
    const Node& node = *layer.node;
    layer.query_heads = Extent(IntAttribute(node, "num_heads", 0));
    layer.kv_heads = Extent(IntAttribute(node, "kv_num_heads", 0));
    const int64_t window = IntAttribute(node, "local_window_size", kFullWindow);
    layer.window = window < 0 ? kFullWindow : window;
    if (layer.IsKvshare() && !Input(node, kExternalKey).empty()) {
      Borrow(layer, {Input(node, kExternalKey), {}}, {Input(node, kExternalValue), {}});
      return;
    }
    const Emptiness empty = Input(node, 1).empty() ? Emptiness::kNot : EmptinessOf(graph, Input(node, 1));
    if (empty != Emptiness::kNot && !Input(node, 3).empty()) {
      layer.constant_empty = empty == Emptiness::kConstant;
      Borrow(layer, {Input(node, 3), {}}, {Input(node, 4), {}});
      if (Input(node, 2) != Input(node, 1) && EmptinessOf(graph, Input(node, 2)) == Emptiness::kNot)
        layer.trouble = "key has length 0 and value has not";
      return;
    }
    // The query first: a cache of int4 holds two channels in each of its elements.
    const bool packed = Input(node, 1).empty();
    layer.head_size =
        HeadSizeIn(graph, Input(node, 0), packed ? layer.query_heads + 2 * layer.kv_heads : layer.query_heads);
    if (layer.head_size == 0) layer.head_size = HeadSizeIn(graph, Output(node, 0), layer.query_heads);
    if (layer.head_size == 0 && graph.ElementType(Input(node, 3)) != onnx::TensorProto::UINT8) {
      layer.head_size = HeadSizeFrom(graph, Output(node, 1));
      if (layer.head_size == 0) layer.head_size = HeadSizeFrom(graph, Input(node, 3));
    }
  }

  void ReadAttention(Layer& layer) {
    const Graph& graph = *layer.graph;
    const Node& node = *layer.node;
    layer.form = LayerForm::kAttention;
    layer.query_heads = Extent(IntAttribute(node, "q_num_heads", 0));
    layer.kv_heads = Extent(IntAttribute(node, "kv_num_heads", 0));
    layer.window = IntAttribute(node, "local_window_size", kFullWindow);
    if (!Input(node, 3).empty()) {
      const auto meaning = ReadMask(graph, Input(node, 3));
      if (meaning.ok()) {
        layer.window = meaning->window;
      } else {
        layer.mask_trouble = meaning.status().message();
      }
    }
    Trace key = TraceUp(graph, Input(node, 1));
    Trace value = TraceUp(graph, Input(node, 2));
    const bool borrows = MakerOf(graph, key.value) || MakerOf(graph, value.value) ||
                         (graph.IsInput(key.value) && graph.IsInput(value.value) && Input(node, 4).empty());
    if (borrows) {
      layer.head_size = HeadSizeFrom(graph, key.value);
      Borrow(layer, key, value);
      return;
    }
    layer.head_size = HeadSizeFrom(graph, Output(node, 1));
    if (layer.head_size == 0) layer.head_size = HeadSizeFrom(graph, Input(node, 4));
    ReadRank4(layer);
    if (Input(node, 4).empty()) ReadEqualKeys(layer);
  }

  // A query and key of rank 4 tell what attributes tell of others.
  static void ReadRank4(Layer& layer) {
    const auto query = Bnsh(*layer.graph, Input(*layer.node, 0));
    const auto key = Bnsh(*layer.graph, Input(*layer.node, 1));
    if (query) layer.query_heads = Extent((*query)[1]);
    if (key) layer.kv_heads = Extent((*key)[1]);
    if (query && layer.head_size == 0) layer.head_size = Extent((*query)[3]);
  }

  // PyTorch's exporter joins past and new keys itself: a layer borrows by taking the very values that another takes.
  void ReadEqualKeys(Layer& layer) {
    const std::string& key = Input(*layer.node, 1);
    const std::string& value = Input(*layer.node, 2);
    const auto [taken, first] = takers_.try_emplace({layer.graph->OwnerOf(key), key, value}, layer.index);
    if (first) return;
    layer.kind = LayerKind::kShared;
    layer.source = taken->second;
    layer.trouble = fmt::format(
        "takes the same key and value as layer {}, made outside of both; nothing is copied for it, and drop-in serves "
        "it as it is",
        layer.source);
  }

  void Borrow(Layer& layer, const Trace& key, const Trace& value) {
    const Graph& graph = *layer.graph;
    layer.kind = LayerKind::kShared;
    layer.key = key.value;
    layer.value = value.value;
    for (Node* step : key.steps) layer.copies.push_back(step);
    for (Node* step : value.steps) layer.copies.push_back(step);
    if (graph.IsInput(key.value) && graph.IsInput(value.value)) {
      const std::string& place = graph.OwnerOf(key.value)->place();
      layer.trouble = fmt::format("borrows from an input of {}, not from a layer of this model",
                                  place.empty() ? "the graph" : place);
      return;
    }
    const auto from_key = MakerOf(graph, key.value);
    const auto from_value = MakerOf(graph, value.value);
    if (!from_key || !from_value) {
      layer.trouble = fmt::format("{} '{}' is not a layer's present", !from_key ? "key" : "value",
                                  !from_key ? key.value : value.value);
      return;
    }
    layer.source = *from_key;
    const Layer& source = layers_[static_cast<size_t>(layer.source)];
    if (layer.head_size == 0) layer.head_size = source.head_size;
    if (*from_key != *from_value) {
      layer.trouble = fmt::format("key is borrowed from layer {}, value from layer {}", *from_key, *from_value);
    } else if (key.value != Output(*source.node, 1) || value.value != Output(*source.node, 2)) {
      layer.trouble = fmt::format("key and value of layer {} are borrowed crosswise", layer.source);
    } else if (source.IsShared()) {
      layer.trouble = fmt::format("source layer {} is itself shared", layer.source);
    } else {
      const int64_t width = layer.kv_heads * layer.head_size;
      layer.trouble = OddSteps(graph, key, width);
      if (layer.trouble.empty()) layer.trouble = OddSteps(graph, value, width);
    }
  }

  std::vector<Layer> layers_;
  std::map<std::tuple<const Graph*, std::string, std::string>, int> takers_;  // key, value -> the first to take them
  std::map<std::pair<const Graph*, std::string>, int> maker_;  // a present, by the graph it belongs to -> layer
};

}  // namespace

std::string WindowText(int64_t window) { return window == kFullWindow ? "full" : fmt::format("{}", window); }

std::vector<Layer> FindLayers(const Graph& graph) {
  Finder finder;
  finder.Walk(graph);
  for (const auto& function : graph.functions()) finder.Walk(*function);
  return finder.Take();
}

}  // namespace kvshare::graph
