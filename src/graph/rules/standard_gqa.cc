// GroupQueryAttention in operators of ai.onnx: a cache that grows is padded, new keys are scattered into it where each
// sequence stands, and Attention of opset 25 sees as many rows as it has.
//
//  before  GroupQueryAttention(q, k, v, past_key, past_value, seqlens_k, total_sequence_length, cos, sin)
//  after   present_key = TensorScatter(Pad(past_key), RotaryEmbedding(k, cos, sin, positions), begin), and so for v
//          Attention(RotaryEmbedding(q, cos, sin, positions), present_key, present_value, "", "", "", end)
//          {is_causal, left_window_size}
//  shared  Attention(RotaryEmbedding(q, ...), the source's presents, "", "", "", end)
//  packed  q, k, v = Split(query), where the query of GroupQueryAttention holds all three
//  normed  RMSNormalization(q, q_norm_weight) before the rotation, and so for k
//
// Query and new keys are turned to [B, heads, S, D] first: Attention takes query, key and value of one rank.
#include "graph/rules/standard_gqa.h"

#include <array>

#include "core/ops.h"
#include "graph/match/gqa.h"
#include "graph/opset25.h"
#include "graph/sums.h"

namespace kvshare::graph {
namespace {

constexpr int kFirstOddInput = 9;  // position_ids, attention_bias, head_sink, scales, norms, query_seqlens
constexpr int kLastInput = 16;
constexpr int kQueryNorm = gqa::kQNormWeight;
constexpr int kKeyNorm = gqa::kKNormWeight;
constexpr float kNormEpsilon = 1e-6F;  // where the node says none

const char* NameOfInput(int input) {
  static constexpr std::array names = {"position_ids", "attention_bias", "head_sink",     "k_scale",
                                       "v_scale",      "q_norm_weight",  "k_norm_weight", "query_seqlens"};
  return names[static_cast<size_t>(input - kFirstOddInput)];
}

Decline CheckRotary(const Layer& layer) {
  const Node& node = *layer.node;
  if (!Differs(node, "do_rotary")) return {};
  const auto table = layer.graph->Shape(Input(node, 7));
  if (table && table->size() == 2 && (*table)[1] > 0) return {};
  return Because(DeclineCode::kRotaryUnknown, "the shape of rotary table '{}' is not known", Input(node, 7));
}

// Declines what ai.onnx cannot say.
Decline CheckWords(const Layer& layer) {
  const Node& node = *layer.node;
  KVSHARE_RETURN_IF_ERROR(CheckGqaNode(layer));
  for (int input = kFirstOddInput; input <= kLastInput; ++input)
    if (input != kQueryNorm && input != kKeyNorm && !Input(node, input).empty())
      return Because(DeclineCode::kInputsUnknown, "has {}, which ai.onnx's Attention has not", NameOfInput(input));
  for (const char* odd : {"smooth_softmax", "sliding_window_cache", "qk_output", kWindowCacheRows})
    if (Differs(node, odd) && IntAttribute(node, odd) > 0)
      return Because(DeclineCode::kAttributeUnknown, "has {} {}, which ai.onnx's Attention has not", odd,
                     IntAttribute(node, odd));
  KVSHARE_RETURN_IF_ERROR(CheckStandardScale(node));
  if (IntAttribute(node, "causal") != 1) return Because(DeclineCode::kNotCausal, "has causal 0");
  if (layer.head_size <= 0 || layer.query_heads <= 0 || layer.kv_heads <= 0)
    return Because(DeclineCode::kHeadSize, "its numbers of heads and its head size are not known");
  return CheckRotary(layer);
}

bool IsPacked(const Node& node) { return Input(node, 1).empty() && Input(node, 2).empty(); }

Decline CheckOwn(const Layer& layer) {
  const Node& node = *layer.node;
  if (!IsPacked(node) && (Input(node, 1).empty() || Input(node, 2).empty()))
    return Because(DeclineCode::kInputsUnknown, "has only one of key and value; needs both, or both in its query");
  if (!IsPacked(node) && SumOfExtent(*layer.graph, Input(node, 1), 1) != SumOfExtent(*layer.graph, Input(node, 0), 1))
    return Because(DeclineCode::kKeyNotOfThisStep, "its key is not known to have as many tokens as its query");
  for (const int past : {3, 4})
    if (Input(node, past).empty())
      return Because(DeclineCode::kCacheIncomplete, "has only a part of past and present; needs key and value of both");
  return {};
}

Decline Check(const Rewriting& rewriting, const Layer& layer) {
  if (layer.IsShared()) KVSHARE_RETURN_IF_ERROR(CheckSharedGqa(rewriting.layers, layer));
  if (!layer.trouble.ok()) return layer.trouble;
  KVSHARE_RETURN_IF_ERROR(CheckWords(layer));
  if (!layer.IsShared()) KVSHARE_RETURN_IF_ERROR(CheckOwn(layer));
  if (layer.IsShared() && layer.source >= 0 && Differs(*rewriting.SourceOf(layer).node, "sliding_window_cache"))
    return Because(DeclineCode::kSourceCache, "source layer {} keeps only a window of its cache", layer.source);
  return CheckRaise(rewriting.graph);
}

class Turn {
 public:
  Turn(Rewriting& rewriting, const Layer& layer, const Node& counts)
      : rewriting_(rewriting),
        graph_(rewriting.GraphOf(layer)),
        layer_(layer),
        node_(*layer.node),
        base_(node_.output(0)),
        splits_(IsFlat(layer)),
        places_(PlacesOf(rewriting, layer, counts)) {}

  void Shared() {
    StandardInputs inputs;
    inputs.query = Query(Input(node_, 0));
    inputs.key = layer_.key;
    inputs.value = layer_.value;
    Finish(std::move(inputs));
  }

  void Own() {
    const std::vector<std::string> presents = {Output(node_, 1), Output(node_, 2)};
    graph_.SetOutputs(node_, {base_});
    const auto [query, new_key, new_value] = NewRows();
    StandardInputs inputs;
    inputs.query = Query(query);
    const std::string turned_key = Turned(new_key, layer_.kv_heads, "_key");
    const std::string key = Rotated(Normed(turned_key, kKeyNorm, "k_norm_epsilon", "_key"), "_key");
    inputs.key = Appended(Input(node_, 3), key, presents[0], "_key");
    inputs.value = Appended(Input(node_, 4), Turned(new_value, layer_.kv_heads, "_value"), presents[1], "_value");
    Finish(std::move(inputs));
  }

 private:
  const Node& Make(const char* op, const std::vector<std::string>& inputs, const std::string& what) {
    return graph_.InsertBefore(node_, op, inputs, {graph_.FreshName(base_ + what)});
  }

  std::string Ints(const std::string& what, const std::vector<int64_t>& values) {
    std::string name = graph_.FreshName(base_ + what);
    graph_.AddInts(name, values);
    return name;
  }

  // [B, S]: begin + 0, 1, ..., S - 1. It is made once for layers with as many queries.
  std::string Positions() {
    return rewriting_.Once(layer_, "positions from " + places_.begin, [&] {
      const auto scalar = [&](const std::string& one, const char* what) {
        return Make("Squeeze", {one}, what).output(0);
      };
      const std::string first = scalar(Ints("_nought", {0}), "_first");
      const std::string step = scalar(Ints("_once", {1}), "_step");
      const std::string steps = Make("Range", {first, scalar(places_.count, "_count"), step}, "_steps").output(0);
      const std::string begin = Make("Unsqueeze", {places_.begin, Ints("_axis", {1})}, "_begin").output(0);
      return Make("Add", {begin, steps}, "_positions").output(0);
    });
  }

  // Query, key and value of this step, each [B, S, heads * D].
  std::array<std::string, 3> NewRows() {
    if (!IsPacked(node_)) return {Input(node_, 0), Input(node_, 1), Input(node_, 2)};
    const int64_t kv_channels = layer_.kv_heads * layer_.head_size;
    const std::string channels = Ints("_channels", {layer_.query_heads * layer_.head_size, kv_channels, kv_channels});
    const Node& split = graph_.InsertBefore(
        node_, "Split", {Input(node_, 0), channels},
        {graph_.FreshName(base_ + "_q"), graph_.FreshName(base_ + "_k"), graph_.FreshName(base_ + "_v")});
    graph_.SetInt(split, "axis", 2);
    return {split.output(0), split.output(1), split.output(2)};
  }

  void Swap(const std::string& from, const std::string& to) {
    onnx::AttributeProto perm;
    perm.set_name("perm");
    perm.set_type(onnx::AttributeProto::INTS);
    for (const int64_t axis : {0, 2, 1, 3}) perm.add_ints(axis);
    graph_.SetAttribute(graph_.InsertBefore(node_, "Transpose", {from}, {to}), perm);
  }

  // [B, S, heads * D] as [B, heads, S, D].
  std::string Turned(const std::string& value, int64_t heads, const std::string& what) {
    if (!splits_) return value;
    const std::string shape = Ints(what + "_shape", {0, 0, heads, layer_.head_size});
    const std::string bsnh = Make("Reshape", {value, shape}, what + "_bsnh").output(0);
    std::string bnsh = graph_.FreshName(base_ + what + "_bnsh");
    Swap(bsnh, bnsh);
    return bnsh;
  }

  std::string Query(const std::string& query) {
    const std::string turned = Turned(query, layer_.query_heads, "_query");
    return Rotated(Normed(turned, kQueryNorm, "q_norm_epsilon", "_query"), "_query");
  }

  // Over each head's channels, by the weights of input `weights`.
  std::string Normed(const std::string& value, int weights, const char* epsilon, const std::string& what) {
    if (Input(node_, weights).empty()) return value;
    const Node& norm = Make("RMSNormalization", {value, Input(node_, weights)}, what + "_normed");
    const auto* said = FindAttribute(node_, epsilon);
    if (said == nullptr) said = FindAttribute(node_, "qk_norm_epsilon");
    onnx::AttributeProto attribute;
    attribute.set_name("epsilon");
    attribute.set_type(onnx::AttributeProto::FLOAT);
    attribute.set_f(said == nullptr ? kNormEpsilon : said->f());
    graph_.SetAttribute(norm, attribute);
    return norm.output(0);
  }

  std::string Rotated(const std::string& value, const std::string& what) {
    if (!Differs(node_, "do_rotary")) return value;
    const Node& rotary =
        Make("RotaryEmbedding", {value, Input(node_, 7), Input(node_, 8), Positions()}, what + "_rotated");
    const int64_t channels = 2 * (*graph_.Shape(Input(node_, 7)))[1];
    if (channels != layer_.head_size) graph_.SetInt(rotary, "rotary_embedding_dim", channels);
    if (Differs(node_, "rotary_interleaved")) graph_.SetInt(rotary, "interleaved", 1);
    return rotary.output(0);
  }

  // The past with rows for all tokens: as it is where it has them.
  std::string Roomy(const std::string& past, const std::string& what) {
    const std::string extent = TextOf(SumOfExtent(graph_, past, 2));
    const std::string pads = rewriting_.Once(layer_, "room behind " + extent + " for " + places_.rows, [&] {
      const Node& held = Make("Shape", {past}, "_held");
      graph_.SetInt(held, "start", 2);
      graph_.SetInt(held, "end", 3);
      const std::string more = Make("Sub", {places_.rows, held.output(0)}, "_more").output(0);
      const std::string room = Make("Max", {more, Ints("_none", {0})}, "_room").output(0);
      const Node& joined = Make("Concat", {Ints("_before", {0, 0, 0, 0, 0, 0}), room, Ints("_after", {0})}, "_pads");
      graph_.SetInt(joined, "axis", 0);
      return joined.output(0);
    });
    return Make("Pad", {past, pads}, what + "_past").output(0);
  }

  // The cache with the new rows [B, Hkv, S, D].
  std::string Appended(const std::string& past, const std::string& rows, const std::string& present,
                       const std::string& what) {
    const std::string room = Roomy(past, what);
    const std::string name = present.empty() ? graph_.FreshName(base_ + what + "_present") : present;
    return graph_.InsertBefore(node_, "TensorScatter", {room, rows, places_.begin}, {name}).output(0);
  }

  void Finish(StandardInputs inputs) {
    inputs.lengths = places_.end;
    const std::string bnsh = splits_ ? graph_.FreshName(base_ + "_bnsh") : base_;
    graph_.SetOutputs(node_, {bnsh});
    TurnIntoStandard(rewriting_, layer_, inputs);
    if (!splits_) return;
    const std::string bsnh = graph_.FreshName(base_ + "_bsnh");
    Swap(bnsh, bsnh);
    graph_.InsertBefore(node_, "Reshape", {bsnh, Ints("_fold", {0, 0, layer_.query_heads * layer_.head_size})},
                        {base_});
  }

  Rewriting& rewriting_;
  Graph& graph_;
  const Layer& layer_;
  const Node& node_;
  std::string base_;
  bool splits_;  // the query and what it becomes are [B, S, heads * D]
  Places places_;
};

Outcome Apply(Rewriting& rewriting, const Layer& layer) {
  if (!layer.IsGqa() || !rewriting.wanted.Has(layer.IsShared() ? Feature::kToStandard : Feature::kOwnToStandard))
    return Outcome::NoMatch();
  if (Decline odd = Check(rewriting, layer); !odd.ok()) return Outcome::Declined(std::move(odd));
  const Node& node = *layer.node;
  for (int output = 1; output < node.output_size(); ++output)
    if ((layer.IsShared() || output > 2) && !node.output(output).empty() && layer.graph->IsRead(node.output(output)))
      return Outcome::Declined(
          Because(DeclineCode::kOutputIsRead, "its output {} '{}' is read", output, node.output(output)));
  if (layer.IsShared()) {
    for (int input = 1; input <= 4; ++input)
      rewriting.released.push_back({&rewriting.GraphOf(layer), Input(node, input), false});
    TurnBorrower(rewriting, layer, node);
  } else {
    Turn(rewriting, layer, node).Own();
  }
  return Outcome::Applied();
}

}  // namespace

Decline CheckStandardScale(const Node& node) {
  const float scale = FindAttribute(node, "scale") == nullptr ? 0.0F : FloatAttribute(node, "scale");
  if (scale >= 0.0F) return {};
  return Because(DeclineCode::kAttributeUnknown, "has scale {}, whose square root ai.onnx's Attention takes", scale);
}

void TurnBorrower(Rewriting& rewriting, const Layer& layer, const Node& counts) {
  Turn(rewriting, layer, counts).Shared();
}

void RunStandardGqa(Rewriting& rewriting) {
  ForEachLayer(rewriting, kStandardGqaRule, Apply);
  rewriting.Reorder();
}

}  // namespace kvshare::graph
