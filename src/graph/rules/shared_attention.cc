// A layer that borrows K/V through Attention and a mask becomes one that borrows them directly.
//
//  before   source.present -> Transpose -> Reshape -> Attention(q, k, v, mask)
//  kvshare             kvshare::GroupQueryAttention(q, seqlens_k, total, external: source.present)
//  kvshare-attention   kvshare::Attention(q, source.present, key_mask)
//  ort                 GroupQueryAttention(q, empty, empty, past: source.present, seqlens_k, total)
#include "graph/masks.h"
#include "graph/rules/rule.h"
#include "graph/schema.h"

namespace kvshare::graph {
namespace {

struct Match {
  MaskMeaning mask;
  bool repairs_causality = false;  // is_causal was what made it causal, without a past
};

Status Reason(std::string text) { return Status::Refused(std::move(text)); }

const Node* SkipCast(const Graph& graph, const std::string& value) {
  const Node* node = graph.Producer(value);
  return node != nullptr && node->op_type() == "Cast" ? graph.Producer(Input(*node, 0)) : node;
}

// seqlens_k = Cast(Sub(ReduceSum(mask, [1]), 1)): that mask.
std::string SeqlensMask(const Graph& graph, const std::string& seqlens) {
  const Node* minus = SkipCast(graph, seqlens);
  if (minus == nullptr || minus->op_type() != "Sub" || graph.Scalar(Input(*minus, 1)) != 1.0) return "";
  const Node* sum = SkipCast(graph, Input(*minus, 0));
  if (sum == nullptr || sum->op_type() != "ReduceSum") return "";
  const auto axes = graph.Ints(Input(*sum, 1));
  if (axes != std::vector<int64_t>{1} && axes != std::vector<int64_t>{-1}) return "";
  const Node* cast = graph.Producer(Input(*sum, 0));
  return cast != nullptr && cast->op_type() == "Cast" ? Input(*cast, 0) : Input(*sum, 0);
}

// total = Cast(Gather(Shape(mask), 1)): that mask.
std::string TotalMask(const Graph& graph, const std::string& total) {
  const Node* gather = SkipCast(graph, total);
  if (gather == nullptr || gather->op_type() != "Gather") return "";
  const auto index = graph.Ints(Input(*gather, 1));
  const Node* shape = SkipCast(graph, Input(*gather, 0));
  if (index != std::vector<int64_t>{1} || shape == nullptr || shape->op_type() != "Shape" ||
      shape->attribute_size() != 0)
    return "";
  return Input(*shape, 0);
}

// What the node itself must be, whatever it borrows.
Status CheckNode(const Graph& graph, const Layer& layer) {
  const Node& node = *layer.node;
  if (const auto text = UnknownAttributeText(node); !text.empty()) return Reason(text);
  for (const char* window : {"left_window_size", "right_window_size"})
    if (FindAttribute(node, window) != nullptr)
      return Reason(fmt::format("has {}; needs its window in the mask", window));
  if (!Input(node, 4).empty() || !Input(node, 5).empty())
    return Reason("has a past of its own beside the borrowed key");
  if (!Input(node, 6).empty()) return Reason("has nonpad_kv_seqlen, which is not converted");
  for (int output = 1; output < node.output_size(); ++output)
    if (!node.output(output).empty() && graph.IsRead(node.output(output)))
      return Reason(fmt::format("its output {} '{}' is read", output, node.output(output)));
  if (layer.query_heads <= 0 || layer.kv_heads <= 0)
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

// What the source must be, and how the two must agree.
Status CheckSource(const Layer& layer, const Layer& source) {
  if (!source.IsGqa())
    return Reason(fmt::format(
        "source layer {} is Attention, not GroupQueryAttention; such models are not converted yet", source.index));
  if (!Input(*source.node, 12).empty() || !Input(*source.node, 13).empty())
    return Reason(fmt::format("source layer {} has a quantized cache", source.index));
  if (IntAttribute(*source.node, "sliding_window_cache", 0) != 0)
    return Reason(fmt::format("source layer {} keeps only a window of its cache", source.index));
  if (IntAttribute(*source.node, "causal", 1) != 1)
    return Reason(fmt::format("source layer {} is not causal", source.index));
  if (source.kv_heads != layer.kv_heads)
    return Reason(fmt::format("source layer {} has {} key-value heads, shared layer has {}", source.index,
                              source.kv_heads, layer.kv_heads));
  if (source.window != layer.window)
    return Reason(fmt::format("source layer {} has window {}, shared layer has {}", source.index,
                              WindowText(source.window), WindowText(layer.window)));
  return {};
}

Result<MaskMeaning> CheckMask(const Graph& graph, const Layer& layer) {
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

// GroupQueryAttention knows the mask only by the source's lengths: they must be counted from the same one.
Status CheckLengths(const Layer& source, const MaskMeaning& mask) {
  const Graph& graph = *source.graph;
  const std::string seqlens = SeqlensMask(graph, Input(*source.node, 5));
  const std::string total = TotalMask(graph, Input(*source.node, 6));
  if (seqlens.empty() || total.empty())
    return Reason(fmt::format("the {} of source layer {} is not known to count a mask",
                              seqlens.empty() ? "seqlens_k" : "total_sequence_length", source.index));
  if (seqlens != mask.key_mask || total != mask.key_mask)
    return Reason(fmt::format("its mask is made from '{}', the lengths of source layer {} from '{}'", mask.key_mask,
                              source.index, seqlens != mask.key_mask ? seqlens : total));
  return {};
}

Result<Match> MatchSharedLayer(const Rewriting& rewriting, const Layer& layer) {
  if (!layer.trouble.empty()) return Reason(layer.trouble);
  const Layer& source = rewriting.SourceOf(layer);
  // A source of another form says more about the model than any detail of this node.
  if (!source.IsGqa()) return CheckSource(layer, source);
  KVSHARE_RETURN_IF_ERROR(CheckNode(*layer.graph, layer));
  Match match;
  KVSHARE_ASSIGN_OR_RETURN(match.mask, CheckMask(*layer.graph, layer));
  KVSHARE_RETURN_IF_ERROR(CheckSource(layer, source));
  if (rewriting.options.target != Target::kKvshareAttention) KVSHARE_RETURN_IF_ERROR(CheckLengths(source, match.mask));
  match.repairs_causality = IntAttribute(*layer.node, "is_causal", 0) == 1;
  return match;
}

void KeepOutputs(const Graph& graph, Node& node, bool names_presents) {
  node.mutable_output()->DeleteSubrange(1, node.output_size() - 1);
  if (!names_presents) return;
  node.add_output(graph.FreshName(node.output(0) + "_present_key"));
  node.add_output(graph.FreshName(node.output(0) + "_present_value"));
}

// Attributes of GroupQueryAttention for this layer; scale and softcap mean the same in both operators.
void TurnAttributes(Node& node, const Layer& layer) {
  Node old = node;
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

// The empty key and value of `source`'s borrowers: made once, by the first of them, with its query's batch.
std::string EmptyKey(Rewriting& rewriting, const Layer& layer) {
  Graph& graph = rewriting.GraphOf(layer);
  for (const Layer& other : rewriting.layers)
    if (other.index < layer.index && other.source == layer.source && other.node->op_type() == "GroupQueryAttention" &&
        other.node->domain() == kMicrosoft && Input(*other.node, 1) == Input(*other.node, 2) && !other.constant_empty &&
        graph.OwnerOf(Input(*other.node, 1)) == other.graph)
      return Input(*other.node, 1);
  const std::string base = Output(*layer.node, 0) + "_empty_kv";
  const std::string batch = graph.FreshName(base + "_batch");
  const std::string rest = graph.FreshName(base + "_rest");
  const std::string shape = graph.FreshName(base + "_shape");
  const std::string empty = graph.FreshName(base);
  // Of the query before its rotary embedding, which fold-rotary may take away.
  const Node* rotary = graph.Producer(Input(*layer.node, 0));
  const std::string& query =
      Input(rotary != nullptr && rotary->op_type() == "RotaryEmbedding" ? *rotary : *layer.node, 0);
  Node& batch_node = graph.InsertBefore(*layer.node, "Shape", {query}, {batch});
  SetInt(batch_node, "start", 0);
  SetInt(batch_node, "end", 1);
  graph.AddInts(rest, {0, layer.kv_heads * layer.head_size});
  SetInt(graph.InsertBefore(*layer.node, "Concat", {batch, rest}, {shape}), "axis", 0);
  Node& empty_node = graph.InsertBefore(*layer.node, "ConstantOfShape", {shape}, {empty});
  onnx::AttributeProto& attribute = *empty_node.add_attribute();
  attribute.set_name("value");
  attribute.set_type(onnx::AttributeProto::TENSOR);
  const int type = graph.ElementType(layer.key);
  attribute.mutable_t()->set_data_type(type);
  attribute.mutable_t()->add_dims(1);
  attribute.mutable_t()->set_raw_data(std::string(type == onnx::TensorProto::FLOAT ? 4 : 2, '\0'));
  return empty;
}

void TurnIntoKvshareGqa(const Layer& layer, const Layer& source) {
  Node& node = *layer.node;
  const std::string query = Input(node, 0);
  node.clear_input();
  SetInput(node, 0, query);
  SetInput(node, 5, Input(*source.node, 5));
  SetInput(node, 6, Input(*source.node, 6));
  SetInput(node, kExternalKey, layer.key);
  SetInput(node, kExternalValue, layer.value);
  TurnAttributes(node, layer);
  node.set_domain(kKvshare);
}

void TurnIntoOrtGqa(Rewriting& rewriting, const Layer& layer, const Layer& source) {
  Node& node = *layer.node;
  const std::string empty = EmptyKey(rewriting, layer);
  const std::string query = Input(node, 0);
  node.clear_input();
  for (const auto& input :
       {query, empty, empty, layer.key, layer.value, Input(*source.node, 5), Input(*source.node, 6)})
    node.add_input(input);
  TurnAttributes(node, layer);
  node.set_domain(kMicrosoft);
}

void TurnIntoKvshareAttention(const Layer& layer, const MaskMeaning& mask) {
  Node& node = *layer.node;
  SetInput(node, 1, layer.key);
  SetInput(node, 2, layer.value);
  SetInput(node, 3, "");
  SetInput(node, kKeyMask, mask.key_mask);
  SetInt(node, "is_causal", 1);
  if (layer.window != kFullWindow) SetInt(node, "local_window_size", layer.window);
  node.set_domain(kKvshare);
}

// Facts only the ort target needs.
Status CheckEmptyKey(const Graph& graph, const Layer& layer) {
  const int type = graph.ElementType(layer.key);
  if (type != onnx::TensorProto::FLOAT && type != onnx::TensorProto::FLOAT16 && type != onnx::TensorProto::BFLOAT16)
    return Reason(fmt::format("the element type of '{}' is {}; needs float, float16 or bfloat16 to make an empty key",
                              layer.key, type == 0 ? "not known" : fmt::format("{}", type)));
  if (layer.head_size <= 0)
    return Reason(fmt::format("the head size of '{}' is not known, which an empty key needs", layer.key));
  return {};
}

Outcome AlreadyConverted(const Rewriting& rewriting, const Layer& layer) {
  const Target target = rewriting.options.target;
  if (target == Target::kOrt && layer.IsKvshare())
    return Outcome::Decline("is kvshare's already; --to ort does not turn it back");
  if (target == Target::kKvshareAttention && layer.IsGqa())
    return Outcome::Decline("is GroupQueryAttention already; --to kvshare-attention turns Attention only");
  if (target == Target::kKvshare && layer.IsKvshare() && !layer.IsGqa())
    return Outcome::Decline("is kvshare::Attention already; --to kvshare does not turn it further");
  return Outcome::NoMatch();
}

Outcome Apply(Rewriting& rewriting, const Layer& layer) {
  if (!layer.IsShared()) return Outcome::NoMatch();
  if (layer.IsGqa() || layer.IsKvshare()) return AlreadyConverted(rewriting, layer);
  const auto match = MatchSharedLayer(rewriting, layer);
  if (!match.ok()) return Outcome::Decline("{}", match.status().message());
  const Target target = rewriting.options.target;
  if (target == Target::kOrt)
    if (const Status status = CheckEmptyKey(*layer.graph, layer); !status.ok())
      return Outcome::Decline("{}", status.message());

  Graph& graph = rewriting.GraphOf(layer);
  const Layer& source = rewriting.SourceOf(layer);
  for (const int input : {1, 2, 3}) rewriting.released.push_back({&graph, Input(*layer.node, input)});
  if (target == Target::kKvshareAttention) {
    TurnIntoKvshareAttention(layer, match->mask);
  } else if (target == Target::kKvshare) {
    TurnIntoKvshareGqa(layer, source);
  } else {
    TurnIntoOrtGqa(rewriting, layer, source);
  }
  KeepOutputs(graph, *layer.node, rewriting.names_presents);
  if (target != Target::kOrt) graph.RequireImport(kKvshare, 1);
  graph.Touch();
  if (match->mask.rank == 3)
    rewriting.Note(
        "masks were [B,S,T], whose B the specification lines up with the heads; they are taken as meant, one a "
        "sequence, so batches larger than 1 are repaired");
  return Outcome::Applied(match->repairs_causality ? "repaired: is_causal=1 without a past is aligned to the first key "
                                                     "since ONNX Runtime 1.28, which made decoding "
                                                     "wrong; the rewritten layers are causal by position"
                                                   : "");
}

}  // namespace

void RunSharedAttention(Rewriting& rewriting) {
  ForEachLayer(rewriting, kSharedAttentionRule, Apply);
  for (const Layer& layer : rewriting.layers)
    if (layer.graph->IsFunction())
      rewriting.Record(kSharedAttentionRule, *layer.node, Outcome::Decline("{}", layer.trouble));
}

}  // namespace kvshare::graph
