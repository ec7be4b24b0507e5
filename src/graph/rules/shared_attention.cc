// A layer that borrows K/V through Attention and a mask becomes one that borrows them directly.
//
//  before   source.present -> Transpose -> Reshape -> Attention(q, k, v, mask)
//  kvshare             kvshare::GroupQueryAttention(q, seqlens_k, total, external: source.present)
//  kvshare-attention   kvshare::Attention(q, source.present, key_mask)
//  ort                 GroupQueryAttention(q, empty, empty, past: source.present, seqlens_k, total)
#include "graph/masks.h"
#include "graph/rules/attention_node.h"
#include "graph/rules/empty_key.h"
#include "graph/rules/rule.h"

namespace kvshare::graph {
namespace {

struct Match {
  MaskMeaning mask;
  bool repairs_causality = false;  // is_causal was what made it causal, without a past
};

Status Reason(std::string text) { return Status::Refused(std::move(text)); }

// What the source must be, and how the two must agree.
Status CheckSource(const Layer& layer, const Layer& source) {
  if (source.kv_heads != layer.kv_heads)
    return Reason(fmt::format("source layer {} has {} key-value heads, shared layer has {}", source.index,
                              source.kv_heads, layer.kv_heads));
  if (!source.IsGqa()) return {};  // its cache is whole, and no node but the shared layer's own says what is visible
  if (!Input(*source.node, 12).empty() || !Input(*source.node, 13).empty())
    return Reason(fmt::format("source layer {} has a quantized cache", source.index));
  if (IntAttribute(*source.node, "sliding_window_cache", 0) != 0)
    return Reason(fmt::format("source layer {} keeps only a window of its cache", source.index));
  if (IntAttribute(*source.node, "causal", 1) != 1)
    return Reason(fmt::format("source layer {} is not causal", source.index));
  if (source.window != layer.window)
    return Reason(fmt::format("source layer {} has window {}, shared layer has {}", source.index,
                              WindowText(source.window), WindowText(layer.window)));
  return {};
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
  if (!source.IsGqa() && rewriting.options.target != Target::kKvshareAttention)
    return Reason(
        fmt::format("source layer {} stayed Attention, whose cache may have gaps where GroupQueryAttention counts "
                    "lengths; needs GroupQueryAttention there, or {{target}} kvshare-attention",
                    source.index));
  KVSHARE_RETURN_IF_ERROR(CheckAttentionNode(layer));
  const Node& node = *layer.node;
  if (!Input(node, 4).empty() || !Input(node, 5).empty())
    return Reason("has a past of its own beside the borrowed key");
  for (int output = 1; output < node.output_size(); ++output)
    if (!node.output(output).empty() && layer.graph->IsRead(node.output(output)))
      return Reason(fmt::format("its output {} '{}' is read", output, node.output(output)));
  Match match;
  KVSHARE_ASSIGN_OR_RETURN(match.mask, CheckAttentionMask(layer));
  KVSHARE_RETURN_IF_ERROR(CheckSource(layer, source));
  if (rewriting.options.target != Target::kKvshareAttention) KVSHARE_RETURN_IF_ERROR(CheckLengths(source, match.mask));
  match.repairs_causality = IntAttribute(node, "is_causal", 0) == 1;
  return match;
}

void KeepOutputs(const Graph& graph, Node& node, bool names_presents) {
  node.mutable_output()->DeleteSubrange(1, node.output_size() - 1);
  if (!names_presents) return;
  node.add_output(graph.FreshName(node.output(0) + "_present_key"));
  node.add_output(graph.FreshName(node.output(0) + "_present_value"));
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
  TurnIntoGqa(layer);
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
  TurnIntoGqa(layer);
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

Outcome AlreadyConverted(const Rewriting& rewriting, const Layer& layer) {
  const Target target = rewriting.options.target;
  if (target == Target::kOrt && layer.IsKvshare())
    return Outcome::Decline("is kvshare's already; {{target}} ort does not turn it back");
  if (target == Target::kKvshareAttention && layer.IsGqa())
    return Outcome::Decline("is GroupQueryAttention already; {{target}} kvshare-attention turns Attention only");
  if (target == Target::kKvshare && layer.IsKvshare() && !layer.IsGqa())
    return Outcome::Decline("is kvshare::Attention already; {{target}} kvshare does not turn it further");
  return Outcome::NoMatch();
}

Outcome Apply(Rewriting& rewriting, const Layer& layer) {
  if (!layer.IsShared()) return Outcome::NoMatch();
  if (layer.IsGqa() || layer.IsKvshare()) return AlreadyConverted(rewriting, layer);
  const auto match = MatchSharedLayer(rewriting, layer);
  if (!match.ok()) return Outcome::Decline("{}", match.status().message());
  const Target target = rewriting.options.target;
  if (target == Target::kOrt)
    if (const Status status = CheckEmptyKey(layer); !status.ok()) return Outcome::Decline("{}", status.message());

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
  NoteRank3(rewriting, match->mask);
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
