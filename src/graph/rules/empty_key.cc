#include "graph/rules/empty_key.h"

namespace kvshare::graph {
Decline CheckEmptyKey(const Layer& layer) {
  const Graph& graph = *layer.graph;
  const int type = graph.ElementType(layer.key);
  if (type != onnx::TensorProto::FLOAT && type != onnx::TensorProto::FLOAT16 && type != onnx::TensorProto::BFLOAT16)
    return Because(DeclineCode::kCacheType,
                   "the element type of '{}' is {}; needs float, float16 or bfloat16 to make an empty key", layer.key,
                   type == 0 ? "not known" : fmt::format("{}", type));
  if (layer.head_size <= 0)
    return Because(DeclineCode::kHeadSize, "the head size of '{}' is not known, which an empty key needs", layer.key);
  return {};
}

std::string EmptyKey(Rewriting& rewriting, const Layer& layer) {
  Graph& graph = rewriting.GraphOf(layer);
  for (const Layer& other : rewriting.layers)
    if (other.index < layer.index && other.source == layer.source && other.kv_heads == layer.kv_heads &&
        other.head_size == layer.head_size && other.node->op_type() == "GroupQueryAttention" &&
        other.node->domain() == kMicrosoft && Input(*other.node, 1) == Input(*other.node, 2) && !other.constant_empty &&
        graph.OwnerOf(Input(*other.node, 1)) == other.graph)
      return Input(*other.node, 1);
  const std::string base = Output(*layer.node, 0) + "_empty_kv";
  const std::string batch = graph.FreshName(base + "_batch");
  const std::string rest = graph.FreshName(base + "_rest");
  const std::string shape = graph.FreshName(base + "_shape");
  const std::string empty = graph.FreshName(base);
  // The query before its rotary embedding, since fold-rotary may remove the latter.
  const Node* rotary = graph.Producer(Input(*layer.node, 0));
  const std::string query =
      Input(rotary != nullptr && rotary->op_type() == "RotaryEmbedding" ? *rotary : *layer.node, 0);
  const Node& batch_node = graph.InsertBefore(*layer.node, "Shape", {query}, {batch});
  graph.SetInt(batch_node, "start", 0);
  graph.SetInt(batch_node, "end", 1);
  graph.AddInts(rest, {0, layer.kv_heads * layer.head_size});
  graph.SetInt(graph.InsertBefore(*layer.node, "Concat", {batch, rest}, {shape}), "axis", 0);
  onnx::AttributeProto zero;
  zero.set_name("value");
  zero.set_type(onnx::AttributeProto::TENSOR);
  const int type = graph.ElementType(layer.key);
  zero.mutable_t()->set_data_type(type);
  zero.mutable_t()->add_dims(1);
  zero.mutable_t()->set_raw_data(std::string(type == onnx::TensorProto::FLOAT ? 4 : 2, '\0'));
  graph.SetAttribute(graph.InsertBefore(*layer.node, "ConstantOfShape", {shape}, {empty}), zero);
  return empty;
}

}  // namespace kvshare::graph
