// A layer that owns its K/V in Attention, with a mask, becomes GroupQueryAttention: it appends in place and needs no
// mask. Rotary embeddings stay where they are: nothing proves that their positions are those that the node would count.
//
//  before   Attention(q, k, v, mask, past_key, past_value)
//  after    GroupQueryAttention(q, k, v, past_key, past_value, seqlens_k, total_sequence_length)
#include <array>

#include "graph/match/attention.h"
#include "graph/match/lengths.h"
#include "graph/rules/turn_gqa.h"

namespace kvshare::graph {
namespace {

constexpr int64_t kOrtHeadSizes = 8;  // ONNX Runtime's GroupQueryAttention takes multiples

std::optional<int64_t> HeadSizeOf(const Graph& graph, const std::string& bnsh) {
  const auto shape = graph.Shape(bnsh);
  return shape && shape->size() == 4 && (*shape)[3] > 0 ? std::optional((*shape)[3]) : std::nullopt;
}

// GroupQueryAttention has one head size and one type for both halves of its cache.
Decline CheckCache(const Layer& layer, Target target) {
  const Graph& graph = *layer.graph;
  const std::array<std::string, 2> past = {Input(*layer.node, 4), Input(*layer.node, 5)};
  for (const auto& name : past)
    if (const int type = graph.ElementType(name);
        type != onnx::TensorProto::FLOAT && type != onnx::TensorProto::FLOAT16 && type != onnx::TensorProto::BFLOAT16)
      return Because(DeclineCode::kCacheType, "the element type of '{}' is {}; needs float, float16 or bfloat16", name,
                     type == 0 ? "not known" : fmt::format("{}", type));
  const auto key = HeadSizeOf(graph, past[0]);
  const auto value = HeadSizeOf(graph, past[1]);
  if (!key || !value || *key != *value)
    return Because(DeclineCode::kHeadSize, "the head sizes of '{}' and '{}' are not known to be one", past[0], past[1]);
  if (target == Target::kOrt && *key % kOrtHeadSizes != 0)
    return Because(DeclineCode::kHeadSize,
                   "has head size {}; ONNX Runtime's GroupQueryAttention needs a multiple of {}", *key, kOrtHeadSizes);
  return {};
}

Matched<MaskMeaning> Match(const Layer& layer, Target target) {
  KVSHARE_ASSIGN_OR_RETURN(MaskMeaning mask, MatchOwnAttention(layer));
  KVSHARE_RETURN_IF_ERROR(CheckCache(layer, target));
  return mask;
}

struct Lengths {
  std::string seqlens;
  std::string total;
};

// seqlens_k and total_sequence_length of `mask`: those of an earlier layer, or made right before this one.
Lengths LengthsOf(Rewriting& rewriting, const Layer& layer, const std::string& mask) {
  Graph& graph = rewriting.GraphOf(layer);
  for (const Layer& other : rewriting.layers) {
    if (other.index >= layer.index || other.node->op_type() != "GroupQueryAttention") continue;
    Lengths known{Input(*other.node, 5), Input(*other.node, 6)};
    if (graph.OwnerOf(known.seqlens) != nullptr && SeqlensCount(graph, known.seqlens, mask) &&
        graph.OwnerOf(known.total) != nullptr && TotalCounts(graph, known.total, mask))
      return known;
  }
  const auto made = [&](const char* op, std::initializer_list<std::string> inputs, const char* what) {
    const std::string name = graph.FreshName(mask + what);
    return std::pair(&graph.InsertBefore(*layer.node, op, inputs, {name}), name);
  };
  const std::string one = graph.FreshName(mask + "_one");
  graph.AddInts(one, {1});
  std::string numbers = mask;
  if (graph.ElementType(mask) != onnx::TensorProto::INT64) {
    const auto [cast, widened] = made("Cast", {mask}, "_int64");
    SetInt(*cast, "to", onnx::TensorProto::INT64);
    numbers = widened;
  }
  const auto [sum, ones] = made("ReduceSum", {numbers, one}, "_ones");
  SetInt(*sum, "keepdims", 0);
  const std::string last = made("Sub", {ones, one}, "_last").second;
  const auto [seqlens_cast, seqlens] = made("Cast", {last}, "_seqlens_k");
  SetInt(*seqlens_cast, "to", onnx::TensorProto::INT32);
  const std::string extents = made("Shape", {mask}, "_extents").second;
  const std::string columns = made("Gather", {extents, one}, "_columns").second;
  const auto [total_cast, total] = made("Cast", {columns}, "_total");
  SetInt(*total_cast, "to", onnx::TensorProto::INT32);
  return {seqlens, total};
}

Outcome Apply(Rewriting& rewriting, const Layer& layer) {
  Node& node = *layer.node;
  if (layer.IsShared() || layer.IsGqa() || layer.IsKvshare() || (Input(node, 4).empty() && Input(node, 5).empty()))
    return Outcome::NoMatch();
  const Target target = rewriting.options.target;
  const auto mask = Match(layer, target);
  if (!mask.ok()) return Outcome::Declined(mask.status());
  Graph& graph = rewriting.GraphOf(layer);
  const Lengths lengths = LengthsOf(rewriting, layer, mask->key_mask);
  rewriting.released.push_back({&graph, Input(node, 3)});
  const std::vector<std::string> inputs = {Input(node, 0), Input(node, 1),  Input(node, 2), Input(node, 4),
                                           Input(node, 5), lengths.seqlens, lengths.total};
  node.clear_input();
  for (const auto& input : inputs) node.add_input(input);
  TurnIntoGqa(layer);
  node.set_domain(target == Target::kOrt ? kMicrosoft : kKvshare);
  graph.RequireImport(node.domain(), 1);
  graph.Touch();
  NoteRank3(rewriting, *mask);
  return Outcome::Applied(fmt::format(
      "changed contract: caches are compact: a sequence's new keys go right after its last kept one, no longer to the "
      "padded end, and each row of '{}' is ones, then zeros; the same for batch 1 and for equal lengths",
      mask->key_mask));
}

}  // namespace

void RunOwnAttention(Rewriting& rewriting) { ForEachLayer(rewriting, kOwnAttentionRule, Apply); }

}  // namespace kvshare::graph
