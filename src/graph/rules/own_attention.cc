// A layer that owns its K/V in Attention, with a mask, becomes GroupQueryAttention: it appends in place and needs no
// mask. Rotary embeddings stay where they are: nothing proves that their positions are those that the node would count.
//
//  before   Attention(q, k, v, mask, past_key, past_value)
//  after    GroupQueryAttention(q, k, v, past_key, past_value, seqlens_k, total_sequence_length)
#include <array>
#include <map>
#include <set>
#include <tuple>

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
Decline CheckCache(const Layer& layer, bool for_ort) {
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
  if (for_ort && *key % kOrtHeadSizes != 0)
    return Because(DeclineCode::kHeadSize,
                   "has head size {}; ONNX Runtime's GroupQueryAttention needs a multiple of {}", *key, kOrtHeadSizes);
  return {};
}

Matched<MaskMeaning> Match(const Layer& layer, bool for_ort) {
  KVSHARE_ASSIGN_OR_RETURN(MaskMeaning mask, MatchOwnAttention(layer));
  KVSHARE_RETURN_IF_ERROR(CheckCache(layer, for_ort));
  return mask;
}

struct Lengths {
  std::string seqlens;
  std::string total;
};

// The lengths that GroupQueryAttention nodes before the layer count, by the mask they are counted from.
class LengthsBefore {
 public:
  void Add(const Layer& layer) {
    if (layer.node->op_type() != "GroupQueryAttention") return;
    const Graph& graph = *layer.graph;
    const Lengths lengths{Input(*layer.node, 5), Input(*layer.node, 6)};
    const Graph* owner = graph.OwnerOf(lengths.seqlens);
    if (owner == nullptr || !seen_.insert({owner, lengths.seqlens, lengths.total}).second) return;
    if (std::string mask = MaskOfSeqlens(graph, lengths.seqlens); TotalCounts(graph, lengths.total, mask))
      known_[std::move(mask)].push_back({owner, lengths});
  }

  // Those of `mask` that `graph` sees.
  const Lengths* Of(const Graph& graph, const std::string& mask) const {
    const auto it = known_.find(mask);
    if (it == known_.end()) return nullptr;
    for (const auto& [owner, lengths] : it->second)
      if (graph.OwnerOf(lengths.seqlens) == owner && graph.OwnerOf(lengths.total) != nullptr) return &lengths;
    return nullptr;
  }

 private:
  std::set<std::tuple<const Graph*, std::string, std::string>> seen_;
  std::map<std::string, std::vector<std::pair<const Graph*, Lengths>>> known_;
};

// seqlens_k and total_sequence_length of `mask`, made right before the layer.
Lengths MakeLengths(Graph& graph, const Layer& layer, const std::string& mask) {
  const auto make = [&](const char* op, const std::vector<std::string>& inputs, const char* what) -> const Node& {
    return graph.InsertBefore(*layer.node, op, inputs, {graph.FreshName(mask + what)});
  };
  const auto cast = [&](const std::string& value, int type, const char* what) {
    const Node& node = make("Cast", {value}, what);
    graph.SetInt(node, "to", type);
    return node.output(0);
  };
  const std::string one = graph.FreshName(mask + "_one");
  graph.AddInts(one, {1});
  const bool is_int64 = graph.ElementType(mask) == onnx::TensorProto::INT64;
  const std::string numbers = is_int64 ? mask : cast(mask, onnx::TensorProto::INT64, "_int64");
  const Node& ones = make("ReduceSum", {numbers, one}, "_ones");
  graph.SetInt(ones, "keepdims", 0);
  const std::string last = make("Sub", {ones.output(0), one}, "_last").output(0);
  const std::string seqlens = cast(last, onnx::TensorProto::INT32, "_seqlens_k");
  const std::string extents = make("Shape", {mask}, "_extents").output(0);
  const std::string columns = make("Gather", {extents, one}, "_columns").output(0);
  return {seqlens, cast(columns, onnx::TensorProto::INT32, "_total")};
}

Outcome Apply(Rewriting& rewriting, const Layer& layer, const LengthsBefore& before) {
  const Node& node = *layer.node;
  if (layer.IsShared() || layer.IsGqa() || layer.IsKvshare() || (Input(node, 4).empty() && Input(node, 5).empty()))
    return Outcome::NoMatch();
  const bool for_ort = !rewriting.wanted.Has(Feature::kOwnInKvshare);
  const auto mask = Match(layer, for_ort);
  if (!mask.ok()) return Outcome::Declined(mask.status());
  Graph& graph = rewriting.GraphOf(layer);
  const Lengths* known = before.Of(graph, mask->key_mask);
  const Lengths lengths = known != nullptr ? *known : MakeLengths(graph, layer, mask->key_mask);
  rewriting.released.push_back({&graph, Input(node, 3)});
  graph.SetInputs(node, {Input(node, 0), Input(node, 1), Input(node, 2), Input(node, 4), Input(node, 5),
                         lengths.seqlens, lengths.total});
  TurnIntoGqa(rewriting, layer, for_ort ? kMicrosoft : kKvshare);
  NoteRank3(rewriting, *mask);
  return Outcome::Applied(fmt::format(
      "changed contract: caches are compact: a sequence's new keys go right after its last kept one, no longer to the "
      "padded end, and each row of '{}' is ones, then zeros; the same for batch 1 and for equal lengths",
      mask->key_mask));
}

}  // namespace

void RunOwnAttention(Rewriting& rewriting) {
  LengthsBefore before;
  ForEachLayer(rewriting, kOwnAttentionRule, [&](Rewriting& all, const Layer& layer) {
    Outcome outcome = Apply(all, layer, before);
    before.Add(layer);
    return outcome;
  });
}

}  // namespace kvshare::graph
