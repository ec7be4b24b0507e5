#include "graph/rules/standard_lengths.h"

#include "graph/opset25.h"
#include "graph/sums.h"

namespace kvshare::graph {
namespace {

// New nodes right before a layer.
class Maker {
 public:
  Maker(Rewriting& rewriting, const Layer& layer) : graph_(rewriting.GraphOf(layer)), where_(*layer.node) {}

  std::string Make(const char* op, const std::vector<std::string>& inputs, const std::string& name) {
    return graph_.InsertBefore(where_, op, inputs, {graph_.FreshName(name)}).output(0);
  }
  std::string Int(int64_t value, const std::string& name) {
    std::string fresh = graph_.FreshName(name);
    graph_.AddInts(fresh, {value});
    return fresh;
  }
  // [1]
  std::string Extent(const std::string& value, int64_t axis, const std::string& name) {
    const Node& shape = graph_.InsertBefore(where_, "Shape", {value}, {graph_.FreshName(name)});
    graph_.SetInt(shape, "start", axis);
    graph_.SetInt(shape, "end", axis + 1);
    return shape.output(0);
  }
  // `value` of any rank as int64 of rank 1.
  std::string Flat(const std::string& value, const std::string& name) {
    std::string flat = Make("Reshape", {value, Int(-1, name + "_any")}, name + "_flat");
    if (graph_.ElementType(value) == onnx::TensorProto::INT64) return flat;
    const Node& cast = graph_.InsertBefore(where_, "Cast", {flat}, {graph_.FreshName(name)});
    graph_.SetInt(cast, "to", onnx::TensorProto::INT64);
    return cast.output(0);
  }

 private:
  Graph& graph_;
  const Node& where_;
};

std::string ExtentText(const Layer& layer, const std::string& value, int64_t axis) {
  return TextOf(SumOfExtent(*layer.graph, value, axis));
}

}  // namespace

bool IsFlat(const Layer& layer) { return layer.IsGqa() || FindAttribute(*layer.node, "q_num_heads") != nullptr; }

std::string AllKeys(Rewriting& rewriting, const Layer& layer) {
  const std::string& key = Input(*layer.node, 1);
  const int64_t axis = IsFlat(layer) ? 1 : 2;
  return rewriting.Once(layer, "all keys of " + ExtentText(layer, key, axis), [&] {
    Maker maker(rewriting, layer);
    const std::string rows = maker.Extent(key, axis, key + "_rows");
    const std::string batch = maker.Extent(Input(*layer.node, 0), 0, key + "_batch");
    return maker.Make("Expand", {rows, batch}, key + "_lengths");
  });
}

Places PlacesOf(Rewriting& rewriting, const Layer& layer, const Node& node) {
  const std::string& seqlens = Input(node, 5);
  const std::string& total = Input(node, 6);
  const std::string& query = Input(*layer.node, 0);
  const int64_t axis = IsFlat(layer) ? 1 : 2;
  Maker maker(rewriting, layer);
  Places places;
  places.rows = rewriting.Once(layer, "rows of " + total, [&] { return maker.Flat(total, total + "_rows"); });
  const std::string lengths = rewriting.Once(layer, "lengths of " + seqlens, [&] {
    const std::string last = maker.Flat(seqlens, seqlens + "_last");
    return maker.Make("Add", {last, maker.Int(1, seqlens + "_one")}, seqlens + "_lengths");
  });
  const std::string queries = ExtentText(layer, query, axis);
  places.count = rewriting.Once(layer, "number of queries " + queries,
                                [&] { return maker.Extent(query, axis, query + "_queries"); });
  const std::string what = fmt::format("{} behind '{}' of '{}'", queries, seqlens, total);
  // In a first prompt each sequence begins at 0, whatever its length.
  places.end = rewriting.Once(layer, "end of " + what, [&] {
    const std::string is_prompt = maker.Make("Equal", {places.count, places.rows}, seqlens + "_is_prompt");
    return maker.Make("Where", {is_prompt, places.count, lengths}, seqlens + "_end");
  });
  places.begin = rewriting.Once(layer, "begin of " + what,
                                [&] { return maker.Make("Sub", {places.end, places.count}, seqlens + "_begin"); });
  return places;
}

void TurnIntoStandard(Rewriting& rewriting, const Layer& layer, const StandardInputs& inputs) {
  Graph& graph = rewriting.GraphOf(layer);
  const Node& node = *layer.node;
  const Node old = node;
  std::vector<std::string> all = {inputs.query,    inputs.key,        inputs.value,  inputs.mask,
                                  inputs.past_key, inputs.past_value, inputs.lengths};
  while (all.back().empty()) all.pop_back();
  graph.SetInputs(node, all);
  graph.ClearAttributes(node);
  for (const char* kept : {"scale", "softcap"}) {
    const auto* attribute = FindAttribute(old, kept);
    if (attribute != nullptr && attribute->f() != 0.0F) graph.SetAttribute(node, *attribute);
  }
  if (const auto* precision = FindAttribute(old, "softmax_precision")) graph.SetAttribute(node, *precision);
  for (const char* of_rank_3 : {"q_num_heads", "kv_num_heads"})
    if (const auto* attribute = FindAttribute(old, of_rank_3); inputs.as_they_were && attribute != nullptr)
      graph.SetAttribute(node, *attribute);
  graph.SetInt(node, "is_causal", 1);
  // Without a bound onnx's evaluator takes a mask [B, 1, 1, T] for one of a single query beside is_causal.
  if (layer.window == kFullWindow) {
    graph.SetInt(node, "right_window_size", 0);
  } else {
    graph.SetInt(node, "left_window_size", layer.window - 1);
  }
  graph.SetOp(node, "", "Attention");
  graph.RaiseImport("", kWindowOpset);
}

}  // namespace kvshare::graph
