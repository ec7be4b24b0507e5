// A layer that owns its K/V in Attention becomes GroupQueryAttention: it appends in place and needs no mask. Its
// lengths are counted from attention_mask, or are all of its keys where its mask hides no padding. Rotary embeddings
// stay where they are: nothing proves that their positions are those that the node would count.
//
//  before   Attention(q, k, v, mask, past_key, past_value), or Attention(q, Concat(past_key, k), Concat(past_value, v),
//  mask) after    GroupQueryAttention(q, k, v, past_key, past_value, seqlens_k, total_sequence_length)
#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "graph/match/attention.h"
#include "graph/match/caches.h"
#include "graph/match/lengths.h"
#include "graph/match/padding.h"
#include "graph/match/readers.h"
#include "graph/match/static_cache.h"
#include "graph/rules/fold_heads.h"
#include "graph/rules/turn_gqa.h"

namespace kvshare::graph {
namespace {

bool IsJoined(const Layer& layer) { return layer.key_join.node != nullptr && layer.value_join.node != nullptr; }

// The values that go into the layer's cache at a step.
struct Steps {
  std::string key;
  std::string value;
  std::string past_key;
  std::string past_value;
};

Steps StepsOf(const Layer& layer) {
  if (IsJoined(layer))
    return {layer.key_join.added, layer.value_join.added, layer.key_join.past, layer.value_join.past};
  const Node& node = *layer.node;
  return {Input(node, 1), Input(node, 2), Input(node, 4), Input(node, 5)};
}

// The node takes over the joining: nothing that it needs may wait for what is joined.
Decline CheckJoin(const std::vector<Layer>& layers, const Layer& layer, const MaskMeaning& mask) {
  const Graph& graph = *layer.graph;
  const Node& node = *layer.node;
  for (const Join* join : {&layer.key_join, &layer.value_join})
    if (join->last > 0)
      return Because(DeclineCode::kCacheIsCut,
                     "the graph keeps the last {} rows of '{}', and GroupQueryAttention keeps all; needs option "
                     "'target' = 'kvshare-attention', or an export with whole caches",
                     join->last, join->past);
  if (layer.expansion > 1)
    return Because(DeclineCode::kKeyIsExpanded, "the graph repeats each key-value head {} times; needs it as it is",
                   layer.expansion);
  KVSHARE_RETURN_IF_ERROR(CheckFold(layer));
  if (!HasFourAxes(layer)) return Because(DeclineCode::kHeads, "joins keys of rank 4 for a query of rank 3");
  KVSHARE_RETURN_IF_ERROR(CheckCacheMakers(layers, layer));
  for (const Join* join : {&layer.key_join, &layer.value_join}) {
    const std::string& joined = join->node->output(0);
    if (graph.OwnerOf(joined) != &graph)
      return Because(DeclineCode::kKeyIsMadeOutside, "takes '{}', which is joined in a graph around it", joined);
    for (const std::string* needed : {&Input(node, 0), &layer.key_join.added, &layer.value_join.added})
      if (graph.DependsOn(*needed, joined))
        return Because(DeclineCode::kKeyNotOfThisStep, "'{}' depends on '{}', which it would make", *needed, joined);
    if (SumOfExtent(graph, join->added, 2) != mask.columns->queries.value_or(TokensOf(layer, 0)))
      return Because(DeclineCode::kKeyNotOfThisStep, "'{}' is not known to have as many tokens as the query",
                     join->added);
  }
  return {};
}

// The nodes that each graph needs; none is edited meanwhile.
class Needed {
 public:
  bool Has(const Graph& graph, const Node& node) {
    const auto [known, is_new] = by_graph_.try_emplace(&graph);
    if (is_new) known->second = NeededNodes(graph);
    return known->second.contains(&node);
  }

 private:
  std::unordered_map<const Graph*, std::unordered_set<const Node*>> by_graph_;
};

// Does attention alone read `value`, a present of an own layer, as keys and values, or others no more than its extents?
// `known`: the layers that read it and what turns it for them.
Decline CheckReadAsKeys(const Graph& graph, const std::string& value, const std::unordered_set<const Node*>& known,
                        Needed& needed) {
  for (const Node* reader : graph.Consumers(value)) {
    for (const auto& body : graph.BodiesOf(*reader))
      KVSHARE_RETURN_IF_ERROR(CheckReadAsKeys(*body, value, known, needed));
    const auto& inputs = reader->input();
    const bool is_held = std::ranges::find(inputs, value) == inputs.end();
    const bool is_layer = known.contains(reader) && IsAttentionOp(*reader) && Input(*reader, 0) != value;
    if (is_held || is_layer || graph.IsOnnx(reader, "Shape")) continue;
    if (known.contains(reader) && !IsAttentionOp(*reader)) {
      KVSHARE_RETURN_IF_ERROR(CheckReadAsKeys(graph, reader->output(0), known, needed));
    } else if (needed.Has(graph, *reader)) {
      return Because(DeclineCode::kValueIsRead, "its cache would be compact, and '{}' is read by {}", value,
                     Describe(*reader));
    }
  }
  return {};
}

// Rows of a compact cache are no columns of a mask: whoever else reads it would see other rows.
Decline CheckOtherReaders(const std::vector<Layer>& layers, const Layer& own, Needed& needed) {
  std::unordered_set<const Node*> known = {own.node};
  for (const Layer* borrower : BorrowersOf(layers, own)) {
    known.insert(borrower->node);
    known.insert(borrower->copies.begin(), borrower->copies.end());
  }
  const std::string& key = IsJoined(own) ? Output(*own.key_join.node, 0) : Output(*own.node, 1);
  const std::string& value = IsJoined(own) ? Output(*own.value_join.node, 0) : Output(*own.node, 2);
  KVSHARE_RETURN_IF_ERROR(CheckReadAsKeys(*own.graph, key, known, needed));
  return CheckReadAsKeys(*own.graph, value, known, needed);
}

// The cache loses the padding between its rows, for all who read it: layers that borrow it are to hide the same.
Decline CheckBorrowers(const std::vector<Layer>& layers, const Layer& own, const MaskMeaning& mask) {
  if (!mask.padding) return {};
  for (const Layer* borrower : BorrowersOf(layers, own)) {
    if (borrower->IsGqa()) continue;
    const auto fail = [&](const std::string& why) {
      return Because(DeclineCode::kBorrowerKeepsPadding,
                     "layer {} borrows its cache, which would be compact, and is not known to hide its padding: {}",
                     borrower->index, why);
    };
    // The layer does not count lengths yet, so the guards of lengths do not apply.
    const auto match = MatchSharedAttention(layers, *borrower, /*counts_lengths=*/false);
    if (!match.ok()) return fail(match.status().message());
    if (!match->mask.padding || match->mask.key_mask != mask.key_mask)
      return fail(fmt::format("its mask does not hide what '{}' does", mask.key_mask));
  }
  return {};
}

constexpr const char* kOrtTakesTokens =
    "ONNX Runtime's GroupQueryAttention takes several new tokens after a past for batch 1 only";

Sum BatchOf(const Layer& layer) { return SumOfExtent(*layer.graph, Input(*layer.node, 0), 0); }

// ONNX Runtime would run no step of a graph whose extents are fixed so.
Decline CheckTokensForOrt(const Layer& layer, const Steps& steps) {
  const Sum batch = BatchOf(layer);
  const Sum tokens = TokensOf(layer, 0);
  const bool fixed = batch.terms.empty() && tokens.terms.empty();
  if (!fixed || batch.Is(1) || tokens.Is(1) || SumOfExtent(*layer.graph, steps.past_key, 2).Is(0)) return {};
  return Because(DeclineCode::kBatchOfTokens, "has {} new tokens and batch {}; {}", tokens.number, batch.number,
                 kOrtTakesTokens);
}

// Is it a layer that this rule may turn?
bool IsAsked(const Layer& layer) {
  if (layer.graph->IsFunction() || layer.IsShared() || layer.IsGqa() || layer.IsKvshare()) return false;
  return HasPast(*layer.node) || IsJoined(layer);
}

Matched<MaskMeaning> Match(const std::vector<Layer>& layers, const Layer& layer, bool for_ort, Needed& needed) {
  KVSHARE_ASSIGN_OR_RETURN(MaskMeaning mask, MatchOwnAttention(layer));
  KVSHARE_RETURN_IF_ERROR(CheckBorrowers(layers, layer, mask));
  if (!HasPast(*layer.node)) {
    KVSHARE_RETURN_IF_ERROR(CheckJoin(layers, layer, mask));
  } else if (Input(*layer.node, 3).empty() && TokensOf(layer, 0) != TokensOf(layer, 1)) {
    return Because(DeclineCode::kKeyNotOfThisStep, "its key is not known to have as many tokens as its query");
  }
  const Steps steps = StepsOf(layer);
  KVSHARE_RETURN_IF_ERROR(CheckGqaCache(*layer.graph, steps.past_key, steps.past_value, for_ort));
  if (for_ort) KVSHARE_RETURN_IF_ERROR(CheckTokensForOrt(layer, steps));
  if (mask.padding) KVSHARE_RETURN_IF_ERROR(CheckOtherReaders(layers, layer, needed));
  return mask;
}

// What the rule says of each layer that it may turn, by Layer::index.
using Matches = std::map<int, Matched<MaskMeaning>>;

// Turns all layers of one mask or none: the caches that stay would need columns for padding.
void CheckPaddingOfAll(const Rewriting& rewriting, Matches& matches) {
  std::map<std::pair<const Graph*, std::string>, CompactLayers> by_mask;
  for (const auto& [index, match] : matches) {
    if (!match.ok() || !match->padding) continue;
    const Layer& layer = rewriting.layers[static_cast<size_t>(index)];
    const Graph* owner = layer.graph->OwnerOf(match->key_mask);
    CompactLayers& compact = by_mask[{owner, match->key_mask}];
    compact.owner = owner;
    compact.key_mask = match->key_mask;
    compact.layers.push_back(&layer);
  }
  for (const auto& [mask, compact] : by_mask)
    if (const Decline seen = CheckPadding(rewriting.graph, rewriting.layers, compact); !seen.ok())
      for (const Layer* layer : compact.layers) matches.insert_or_assign(layer->index, seen);
}

// Judges all layers before the first is edited.
Matches MatchAll(const Rewriting& rewriting, bool for_ort) {
  Matches matches;
  Needed needed;
  for (const Layer& layer : rewriting.layers)
    if (IsAsked(layer)) matches.emplace(layer.index, Match(rewriting.layers, layer, for_ort, needed));
  CheckPaddingOfAll(rewriting, matches);
  return matches;
}

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

// By graph and number of rows: the past of a layer without a window. Its rows go on telling how many tokens there are
// when caches of layers with windows no longer do.
using WholePasts = std::map<std::pair<const Graph*, std::string>, std::string>;

WholePasts FindWholePasts(const std::vector<Layer>& layers) {
  WholePasts found;
  for (const Layer& layer : layers) {
    if (!IsAsked(layer) || layer.window != kFullWindow || layer.key_join.last > 0) continue;
    const std::string past = StepsOf(layer).past_key;
    if (layer.graph->IsInput(past)) found.try_emplace({layer.graph, TextOf(SumOfExtent(*layer.graph, past, 2))}, past);
  }
  return found;
}

// The same of all keys, those of `past` and of this step.
Lengths MakeWholeLengths(Rewriting& rewriting, const Layer& layer, const WholePasts& pasts, const Sum& keys) {
  Graph& graph = rewriting.GraphOf(layer);
  const Steps steps = StepsOf(layer);
  const auto whole = pasts.find({&graph, TextOf(SumOfExtent(graph, steps.past_key, 2))});
  const std::string& past = whole != pasts.end() ? whole->second : steps.past_key;
  const auto make = [&](const char* op, const std::vector<std::string>& inputs, const char* what) -> const Node& {
    return graph.InsertBefore(*layer.node, op, inputs, {graph.FreshName(past + what)});
  };
  const auto extent = [&](const std::string& value, int64_t axis, const char* what) {
    const Node& shape = make("Shape", {value}, what);
    graph.SetInt(shape, "start", axis);
    graph.SetInt(shape, "end", axis + 1);
    return shape.output(0);
  };
  const auto int32 = [&](const std::string& value, const char* what) {
    const Node& cast = make("Cast", {value}, what);
    graph.SetInt(cast, "to", onnx::TensorProto::INT32);
    return cast.output(0);
  };
  const std::string all = rewriting.Once(layer, "all keys, " + TextOf(keys), [&] {
    const std::string added = extent(steps.key, HasFourAxes(layer) ? 2 : 1, "_added");
    return make("Add", {extent(past, 2, "_held"), added}, "_all").output(0);
  });
  const std::string total = rewriting.Once(layer, "total of " + all, [&] { return int32(all, "_total"); });
  const std::string batch = TextOf(SumOfExtent(graph, Input(*layer.node, 0), 0));
  const std::string seqlens = rewriting.Once(layer, fmt::format("last of {} for {}", all, batch), [&] {
    const std::string one = graph.FreshName(past + "_one");
    graph.AddInts(one, {1});
    const std::string last = make("Sub", {all, one}, "_last").output(0);
    return int32(make("Expand", {last, extent(Input(*layer.node, 0), 0, "_batch")}, "_lasts").output(0), "_seqlens_k");
  });
  return {seqlens, total};
}

Lengths LengthsOf(Rewriting& rewriting, const Layer& layer, const MaskMeaning& mask, const WholePasts& pasts,
                  const LengthsBefore& before) {
  if (!mask.padding) return MakeWholeLengths(rewriting, layer, pasts, mask.columns->keys);
  Graph& graph = rewriting.GraphOf(layer);
  const Lengths* known = before.Of(graph, mask.key_mask);
  return known != nullptr ? *known : MakeLengths(graph, layer, mask.key_mask);
}

std::string ContractNote(const MaskMeaning& mask, bool queries_count_rows) {
  std::string note = fmt::format(
      "changed contract: caches are compact: a sequence's new keys go right after its last kept one, no longer to the "
      "padded end, and each row of '{}' is ones, then zeros; only the first prompt may be padded; "
      "the same for batch 1 and for equal lengths",
      mask.key_mask);
  if (queries_count_rows)
    note += "; this model numbers tokens by the rows of its caches: sequences of a batch must have equal lengths";
  return note;
}

// Of an own layer of Attention that is not asked.
Outcome WhyNotAsked(const Rewriting& rewriting, const Layer& layer) {
  const bool takes_static = rewriting.wanted.Has(Feature::kStaticCaches);
  if (takes_static && SeesStaticCache(rewriting.layers, layer)) return Outcome::NoMatch();  // static-cache turns it
  if (layer.static_key.writer != nullptr)
    return Outcome::Declined(Because(DeclineCode::kCacheIsScattered,
                                     "{} writes its cache; needs option 'target' = 'kvshare'",
                                     Describe(*layer.static_key.writer)));
  if (!layer.trouble.ok()) return Outcome::Declined(layer.trouble);
  return Outcome::Declined(
      Because(DeclineCode::kNoCache, "keeps no cache, so there is none to read in place; needs a past and a present"));
}

// What is known of the layers before the first is edited.
struct Known {
  Matches matches;
  WholePasts pasts;
  bool queries_count_rows = false;
};

Outcome Apply(Rewriting& rewriting, const Layer& layer, const Known& known, const LengthsBefore& before) {
  const Node& node = *layer.node;
  if (layer.IsShared() || layer.IsGqa() || layer.IsKvshare()) return Outcome::NoMatch();
  if (!IsAsked(layer)) return WhyNotAsked(rewriting, layer);
  const Matched<MaskMeaning>& mask = known.matches.at(layer.index);
  if (!mask.ok()) return Outcome::Declined(mask.status());
  const bool for_ort = !rewriting.wanted.Has(Feature::kOwnInKvshare);
  Graph& graph = rewriting.GraphOf(layer);
  const Steps steps = StepsOf(layer);
  const Lengths lengths = LengthsOf(rewriting, layer, *mask, known.pasts, before);
  for (const int input : {3, 6}) rewriting.released.push_back({&graph, Input(node, input)});
  const auto fold = [&](const std::string& value, int64_t heads) {
    return HasFourAxes(layer) ? FoldHeads(rewriting, layer, value, heads) : value;
  };
  const std::string query = fold(Input(node, 0), layer.query_heads);
  const std::string key = fold(steps.key, layer.kv_heads);
  const std::string value = fold(steps.value, layer.kv_heads);
  const bool has_four_axes = HasFourAxes(layer);
  graph.SetInputs(node, {query, key, value, steps.past_key, steps.past_value, lengths.seqlens, lengths.total});
  TurnIntoGqa(rewriting, layer, for_ort ? kMicrosoft : kKvshare);
  if (IsJoined(layer)) TakeOverPresents(graph, node, *layer.key_join.node, *layer.value_join.node);
  if (has_four_axes) UnfoldOutput(rewriting, layer);
  NoteRank3(rewriting, *mask);
  if (for_ort && !BatchOf(layer).Is(1) && !TokensOf(layer, 0).Is(1)) rewriting.Note(kOrtTakesTokens);
  if (!mask->padding) return Outcome::Applied();
  return Outcome::Applied(ContractNote(*mask, known.queries_count_rows));
}

}  // namespace

void RunOwnAttention(Rewriting& rewriting) {
  const Known known = {MatchAll(rewriting, !rewriting.wanted.Has(Feature::kOwnInKvshare)),
                       FindWholePasts(rewriting.layers), QueriesCountRows(rewriting.graph, rewriting.layers)};
  LengthsBefore before;
  ForEachLayer(rewriting, kOwnAttentionRule, [&](Rewriting& all, const Layer& layer) {
    Outcome outcome = Apply(all, layer, known, before);
    before.Add(layer);
    return outcome;
  });
  rewriting.Reorder();
}

}  // namespace kvshare::graph
