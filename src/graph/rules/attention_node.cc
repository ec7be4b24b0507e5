#include "graph/rules/attention_node.h"

#include <fmt/format.h>

#include "graph/schema.h"

namespace kvshare::graph {
namespace {

Status Reason(std::string text) { return Status::Refused(std::move(text)); }

// `value`, or what it was before a cast that leaves lengths as they are.
const std::string& BeforeCast(const Graph& graph, const std::string& value) {
  const Node* node = graph.Producer(value);
  const int64_t to = graph.IsOnnx(node, "Cast") ? IntAttribute(*node, "to", 0) : 0;
  return to == onnx::TensorProto::INT32 || to == onnx::TensorProto::INT64 ? Input(*node, 0) : value;
}

}  // namespace

Status CheckAttentionNode(const Layer& layer) {
  const Node& node = *layer.node;
  if (const auto text = UnknownAttributeText(node); !text.empty()) return Reason(text);
  for (const char* window : {"left_window_size", "right_window_size"})
    if (FindAttribute(node, window) != nullptr)
      return Reason(fmt::format("has {}; needs its window in the mask", window));
  if (!Input(node, 6).empty()) return Reason("has nonpad_kv_seqlen, which is not converted");
  if (IntAttribute(node, "q_num_heads", 0) <= 0 || IntAttribute(node, "kv_num_heads", 0) <= 0 ||
      layer.query_heads <= 0 || layer.kv_heads <= 0)
    return Reason("has no q_num_heads and kv_num_heads; needs a 3-D query");
  if (layer.query_heads % layer.kv_heads != 0)
    return Reason(fmt::format("has {} query heads for {} key-value heads", layer.query_heads, layer.kv_heads));
  if (FindAttribute(node, "scale") != nullptr && FloatAttribute(node, "scale", 0) == 0.0F)
    return Reason("has scale 0, which GroupQueryAttention takes for 1/sqrt(head size)");
  if (const int64_t precision = IntAttribute(node, "softmax_precision", onnx::TensorProto::FLOAT);
      precision != onnx::TensorProto::FLOAT)
    return Reason(fmt::format("has softmax_precision {}; needs {} (float)", precision, +onnx::TensorProto::FLOAT));
  return {};
}

Result<MaskMeaning> CheckAttentionMask(const Layer& layer) {
  const Graph& graph = *layer.graph;
  const Node& node = *layer.node;
  if (Input(node, 3).empty()) return Reason("has no mask; needs one that hides the padding");
  KVSHARE_ASSIGN_OR_RETURN(MaskMeaning mask, ReadMask(graph, Input(node, 3)));
  if (!mask.padding) return Reason("its mask does not hide the padding");
  const int64_t is_causal = IntAttribute(node, "is_causal", 0);
  if (!mask.causal && is_causal != 1) return Reason("neither its mask nor is_causal makes it causal");
  if (!mask.query.empty()) {
    const auto shape = graph.Shape(mask.query);
    if (shape && shape->size() > 1 && (*shape)[1] >= 0)
      return Reason(fmt::format("its mask takes the number of queries from '{}', whose extent 1 is fixed to {}",
                                mask.query, (*shape)[1]));
    if (!graph.DependsOn(Input(node, 0), mask.query))
      return Reason(fmt::format("its mask takes the number of queries from '{}', which the query does not depend on",
                                mask.query));
  }
  return mask;
}

void NoteRank3(Rewriting& rewriting, const MaskMeaning& mask) {
  if (mask.rank == 3)
    rewriting.Note(
        "masks were [B,S,T], whose B the specification lines up with the heads; they are taken as meant, one a "
        "sequence, so batches larger than 1 are repaired");
}

std::string SeqlensMask(const Graph& graph, const std::string& seqlens) {
  const Node* minus = graph.Producer(BeforeCast(graph, seqlens));
  if (!graph.IsOnnx(minus, "Sub") || graph.Scalar(Input(*minus, 1)) != 1.0) return "";
  const Node* sum = graph.Producer(BeforeCast(graph, Input(*minus, 0)));
  if (!graph.IsOnnx(sum, "ReduceSum")) return "";
  const auto axes = graph.Ints(Input(*sum, 1));
  if (axes != std::vector<int64_t>{1} && axes != std::vector<int64_t>{-1}) return "";
  return BeforeCast(graph, Input(*sum, 0));
}

std::string TotalMask(const Graph& graph, const std::string& total) {
  const Node* gather = graph.Producer(BeforeCast(graph, total));
  if (!graph.IsOnnx(gather, "Gather")) return "";
  const auto index = graph.Ints(Input(*gather, 1));
  const Node* shape = graph.Producer(BeforeCast(graph, Input(*gather, 0)));
  if (index != std::vector<int64_t>{1} || !graph.IsOnnx(shape, "Shape") || shape->attribute_size() != 0) return "";
  return Input(*shape, 0);
}

void TurnIntoGqa(const Layer& layer) {
  Node& node = *layer.node;
  const Node old = node;
  node.clear_attribute();
  SetInt(node, "num_heads", layer.query_heads);
  SetInt(node, "kv_num_heads", layer.kv_heads);
  SetInt(node, "do_rotary", 0);
  if (layer.window != kFullWindow) SetInt(node, "local_window_size", layer.window);
  for (const char* kept : {"scale", "softcap"}) {
    const auto* attribute = FindAttribute(old, kept);
    if (attribute != nullptr && attribute->f() != 0.0F) *node.add_attribute() = *attribute;
  }
  node.set_op_type("GroupQueryAttention");
}

}  // namespace kvshare::graph
