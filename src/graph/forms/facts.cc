#include "graph/forms/facts.h"

#include <algorithm>
#include <limits>
#include <optional>

#include "graph/extents.h"
#include "graph/masks.h"

namespace kvshare::graph {
namespace {

// The extents of a query or key of rank 4: declared, or those of the Reshape and Transpose that split its heads before
// a norm and a rotation; nothing where its rank is another, or not known.
std::optional<std::vector<int64_t>> Bnsh(const Graph& graph, const std::string& value) {
  if (auto shape = graph.Shape(value)) return shape->size() == 4 ? std::move(shape) : std::nullopt;
  const Node* node = graph.Producer(value);
  for (const char* op : {"RotaryEmbedding", "RMSNormalization"})
    if (graph.IsOnnx(node, op)) node = graph.Producer(Input(*node, 0));
  if (!graph.IsOnnx(node, "Transpose") || IntsAttribute(*node, "perm") != std::vector<int64_t>{0, 2, 1, 3})
    return std::nullopt;
  const Node* split = graph.Producer(Input(*node, 0));
  const auto bsnh = graph.IsOnnx(split, "Reshape") ? graph.Ints(Input(*split, 1)) : std::nullopt;
  if (!bsnh || bsnh->size() != 4 || (*bsnh)[2] <= 0 || (*bsnh)[3] <= 0) return std::nullopt;
  return std::vector<int64_t>{-1, (*bsnh)[2], -1, (*bsnh)[3]};
}

int64_t NarrowerOf(int64_t a, int64_t b) {
  if (a == kFullWindow) return b;
  return b == kFullWindow ? a : std::min(a, b);
}

// ONNX counts left_window_size without the query's own key (opset 25), kvshare's local_window_size with it.
int64_t WindowOf(const Node& node) {
  const int64_t left = IntAttribute(node, "left_window_size");
  const int64_t with_own = left < 0 || left == std::numeric_limits<int64_t>::max() ? kFullWindow : left + 1;
  const int64_t local = IntAttribute(node, "local_window_size");
  return NarrowerOf(local < 0 ? kFullWindow : local, with_own);
}

}  // namespace

int64_t ExtentOrZero(int64_t value) { return value > 0 && value <= std::numeric_limits<int32_t>::max() ? value : 0; }

int64_t HeadSizeFrom(const Graph& graph, const std::string& bnsh) {
  const auto shape = Bnsh(graph, bnsh);
  return shape ? ExtentOrZero((*shape)[3]) : 0;
}

int64_t HeadSizeIn(const Graph& graph, const std::string& folded, int64_t heads) {
  const auto shape = graph.Shape(folded);
  if (!shape || shape->size() != 3 || heads <= 0 || (*shape)[2] % heads != 0) return 0;
  return ExtentOrZero((*shape)[2] / heads);
}

Join JoinOf(const Graph& graph, const std::string& bnsh) {
  const Node* node = graph.Producer(bnsh);
  if (!graph.IsOnnx(node, "Concat") || node->input_size() != 2) return {};
  const int64_t axis = IntAttribute(*node, "axis");
  const auto last = LastRowsOf(graph, graph.Origin(node->input(0)));
  const bool is_cut = last && last->axis == 2;
  const std::string& joined = is_cut ? last->value : node->input(0);
  const std::string& past = graph.Origin(joined);
  if ((axis != 2 && axis != -2) || !graph.IsInput(past) || !Bnsh(graph, past)) return {};
  return {node, past, node->input(1), is_cut ? last->rows : 0};
}

void ReadGqaFacts(Layer& layer) {
  const Node& node = *layer.node;
  layer.form = LayerForm::kGroupQueryAttention;
  layer.query_heads = ExtentOrZero(IntAttribute(node, "num_heads"));
  layer.kv_heads = ExtentOrZero(IntAttribute(node, "kv_num_heads"));
  const int64_t window = IntAttribute(node, "local_window_size");
  layer.window = window < 0 ? kFullWindow : window;
  const std::string& bias = MaskValueOf(layer);
  if (bias.empty()) return;
  if (const auto meaning = ReadMask(*layer.graph, bias); meaning.ok())
    layer.window = NarrowerOf(layer.window, meaning->window);
}

void ReadAttentionFacts(Layer& layer) {
  const Graph& graph = *layer.graph;
  const Node& node = *layer.node;
  layer.form = LayerForm::kAttention;
  layer.query_heads = ExtentOrZero(IntAttribute(node, "q_num_heads"));
  layer.kv_heads = ExtentOrZero(IntAttribute(node, "kv_num_heads"));
  if (const auto query = Bnsh(graph, Input(node, 0))) layer.query_heads = ExtentOrZero((*query)[1]);
  if (const auto key = Bnsh(graph, Input(node, 1))) layer.kv_heads = ExtentOrZero((*key)[1]);
  layer.window = WindowOf(node);
  if (Input(node, 3).empty()) return;
  const auto meaning = ReadMask(graph, Input(node, 3));
  if (meaning.ok()) {
    layer.window = NarrowerOf(layer.window, meaning->window);
  } else {
    layer.mask_trouble = meaning.status();
  }
}

}  // namespace kvshare::graph
