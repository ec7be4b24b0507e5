#include "graph/match/last_token.h"

#include <algorithm>
#include <optional>
#include <set>
#include <span>
#include <unordered_map>
#include <unordered_set>

#include "graph/masks.h"
#include "graph/match/readers.h"
#include "graph/match/token_reads.h"

namespace kvshare::graph {
namespace {

constexpr int kQuerySeqlens = 16;  // input of GroupQueryAttention

// Attention of ai.onnx puts a triangle or a window at the first key, unless nonpad_kv_seqlen says where the queries
// are.
bool CountsFromFirstKey(const Layer& layer) {
  return !layer.IsGqa() && !layer.IsKvshare() && Input(*layer.node, 6).empty();
}

// The layers of the main graph behind the last that makes keys.
Matched<std::span<const Layer>> LayersBehind(const Graph& graph, const std::vector<Layer>& layers) {
  size_t begin = layers.size();
  while (begin > 0 && (layers[begin - 1].IsShared() || layers[begin - 1].graph->IsFunction())) --begin;
  const auto behind = std::span(layers).subspan(begin);
  if (begin == 0 || behind.empty())
    return Because(DeclineCode::kNothingShared, "no layer that borrows comes after the last that makes keys");
  for (const Layer& layer : behind)
    if (layer.graph != &graph)
      return Because(DeclineCode::kInBody, "{} lies in {}", Describe(*layer.node), layer.graph->place());
  if (layers[begin - 1].graph != &graph)
    return Because(DeclineCode::kInBody, "{} lies in {}", Describe(*layers[begin - 1].node),
                   layers[begin - 1].graph->place());
  return behind;
}

// The only graph output that depends on the layers behind.
Matched<std::string> FindLogits(const Graph& graph, const Ranks& ranks, const Layer& first) {
  std::string logits;
  for (const auto& output : graph.proto().output()) {
    if (!graph.DependsOn(output.name(), first.node->output(0))) continue;
    if (!logits.empty())
      return Because(DeclineCode::kValueIsOutput, "graph outputs '{}' and '{}' both depend on its output", logits,
                     output.name());
    logits = output.name();
  }
  if (logits.empty()) return Because(DeclineCode::kNothingShared, "no graph output depends on its output");
  if (ranks.Of(logits) != 3)
    return Because(DeclineCode::kShapeUnknown, "graph output '{}' is not known to be [B, S, V]", logits);
  return logits;
}

// Is `value` what an earlier rewrite took of each sequence: GatherND, between two Transpose nodes where that is not
// the second axis?
bool IsLastToken(const Graph& graph, const std::string& value) {
  const Node* node = graph.Producer(value);
  if (graph.IsOnnx(node, "Transpose")) node = graph.Producer(Input(*node, 0));
  return graph.IsOnnx(node, "GatherND") && IntAttribute(*node, "batch_dims") == 1;
}

Decline CheckUnread(const Graph& graph, const Node& node) {
  for (int output = 1; output < node.output_size(); ++output)
    if (!node.output(output).empty() && graph.IsRead(node.output(output)))
      return Because(DeclineCode::kOutputIsRead, "{}: output {} '{}' is read", Describe(node), output,
                     node.output(output));
  return {};
}

// Is its mask [B, 1, 1, T], one for all queries?
bool IsPaddingAlone(const Layer& layer) {
  const auto mask = ReadMask(*layer.graph, Input(*layer.node, 3));
  return mask.ok() && mask->columns && !mask->columns->queries;
}

// How a layer that borrows reads tokens; a causal triangle that one query alone would misplace goes to the plan.
Matched<TokenReads> ReadLayer(const Layer& layer, LastTokenPlan& plan) {
  const Node& node = *layer.node;
  if (!layer.trouble.ok())
    return Decline(layer.trouble.code(), fmt::format("{}: {}", Describe(node), layer.trouble.message()));
  KVSHARE_RETURN_IF_ERROR(CheckUnread(*layer.graph, node));
  TokenReads reads{{{0, -2}}};
  if (layer.IsGqa()) {
    if (!Input(node, kQuerySeqlens).empty())
      return Because(DeclineCode::kOwnLengths, "{}: has query_seqlens", Describe(node));
    if (!Input(node, 9).empty()) reads.inputs.push_back({9, -1});
    if (!Input(node, 10).empty()) reads.inputs.push_back({10, -2});
    return reads;
  }
  if (!Input(node, 3).empty() && !IsPaddingAlone(layer)) reads.inputs.push_back({3, -2});
  // One query alone would stand at the last column, where a sequence that is padded behind has no token.
  const bool counts_tokens = layer.IsKvshare() && !Input(node, kKeyMask).empty();
  for (const char* window : {"left_window_size", "right_window_size", "local_window_size"})
    if (Differs(node, window) && !counts_tokens)
      return Because(DeclineCode::kWindowAttribute, "{}: has {}, which counts columns", Describe(node), window);
  if (!CountsFromFirstKey(layer)) return reads;
  if (IntAttribute(node, "is_causal") != 1) return reads;
  if (const auto mask = ReadMask(*layer.graph, Input(node, 3)); !mask.ok() || !mask->causal)
    return Because(DeclineCode::kNotCausal, "{}: is_causal, which one query alone would misplace, is not in its mask",
                   Describe(node));
  plan.triangles.push_back(&node);
  return reads;
}

// The mask [B, T] that says which tokens a layer of Attention keeps. Where it may have columns behind those of the
// keys, `keys` gets a value that has them along its axis -2.
Matched<std::string> MaskOf(const Layer& layer, std::string& keys) {
  const Graph& graph = *layer.graph;
  const Node& node = *layer.node;
  if (!Input(node, kKeyMask).empty() || Input(node, 3).empty()) return Input(node, kKeyMask);
  KVSHARE_ASSIGN_OR_RETURN(const MaskMeaning mask, ReadMask(graph, Input(node, 3)));
  if (!mask.padding) return Because(DeclineCode::kMaskKeepsPadding, "its mask does not hide the padding");
  if (mask.columns && SumOfExtent(graph, mask.key_mask, 1) != mask.columns->keys) keys = Input(node, 1);
  return mask.key_mask;
}

// Which token is the last: as `own`, the last layer that makes keys, and the layers behind count them.
Decline FindLast(const Layer& own, std::span<const Layer> behind, LastTokenPlan& plan) {
  const Graph& graph = *own.graph;
  plan.query = Input(*own.node, 0);
  if (own.IsGqa()) {
    if (!Input(*own.node, kQuerySeqlens).empty())
      return Because(DeclineCode::kOwnLengths, "{}: has query_seqlens", Describe(*own.node));
    plan.seqlens = Input(*own.node, 5);
    for (const Layer& layer : behind)
      if (layer.IsGqa() && graph.Origin(Input(*layer.node, 5)) != graph.Origin(plan.seqlens))
        return Because(DeclineCode::kLengthsDiffer, "{}: counts other lengths than {}", Describe(*layer.node),
                       Describe(*own.node));
    return {};
  }
  for (const Layer& layer : behind) {
    if (layer.IsGqa())
      return Because(DeclineCode::kLengthsDiffer, "{}: counts lengths, {} does not", Describe(*layer.node),
                     Describe(*own.node));
    KVSHARE_ASSIGN_OR_RETURN(const std::string mask, MaskOf(layer, plan.keys));
    if (mask.empty() || (!plan.mask.empty() && mask != plan.mask))
      return Because(DeclineCode::kMaskUnknown, "{}: which tokens are kept is not known as for the other layers",
                     Describe(*layer.node));
    plan.mask = mask;
  }
  return {};
}

// From the logits back to the values of all tokens.
class Walk {
 public:
  Walk(const Graph& graph, const Ranks& ranks, std::span<const Layer> behind, LastTokenPlan& plan)
      : graph_(graph),
        fixed_(graph),
        ranks_(ranks),
        needed_(NeededNodes(graph)),
        elsewhere_(NeededNodes(graph, plan.logits)),
        plan_(plan) {
    for (const Layer& layer : behind) layers_[layer.node] = &layer;
  }

  Decline Run() {
    plan_.narrowed[plan_.logits] = -2;
    const auto nodes = graph_.nodes();
    // Readers lie behind what they read: from the back, a node's outputs are known when it is met.
    for (auto it = nodes.rbegin(); it != nodes.rend(); ++it) KVSHARE_RETURN_IF_ERROR(Visit(**it));
    for (const auto& [value, axis] : plan_.narrowed) KVSHARE_RETURN_IF_ERROR(CheckReadersOf(value, axis));
    FindUnneeded();
    return {};
  }

 private:
  void FindUnneeded() {
    std::unordered_set<std::string> narrowed;
    for (const auto& [value, axis] : plan_.narrowed) narrowed.insert(value);
    const auto depend = MadeWith(graph_, std::move(narrowed));
    for (const Node* node : graph_.nodes()) {
      const auto reads = ReadNames(*node);
      if (!needed_.contains(node) &&
          std::ranges::any_of(reads, [&](const auto& name) { return depend.contains(name); }))
        plan_.unneeded.push_back(node);
    }
  }

  Decline Visit(const Node& node) {
    std::optional<int64_t> axis;
    for (const auto& output : node.output()) {
      const auto found = plan_.narrowed.find(output);
      if (found == plan_.narrowed.end()) continue;
      if (axis && *axis != found->second) return Unlike(output);
      axis = found->second;
    }
    if (!axis || IsLastToken(graph_, node.output(0))) return {};
    KVSHARE_ASSIGN_OR_RETURN(TokenReads reads, Read(node, *axis));
    if (reads.shape) plan_.shapes[&node] = *reads.shape;
    for (const TokenRead& read : reads.inputs) KVSHARE_RETURN_IF_ERROR(Ask(node, read));
    return {};
  }

  Matched<TokenReads> Read(const Node& node, int64_t axis) {
    if (!IsAttentionOp(node)) return ReadTokens(graph_, fixed_, ranks_, plan_.logits, node, axis);
    const auto layer = layers_.find(&node);
    if (layer == layers_.end() || axis != -2)
      return Because(DeclineCode::kTokensMixed, "{}: is not known to compute each token on its own", Describe(node));
    return ReadLayer(*layer->second, plan_);
  }

  Decline Ask(const Node& node, const TokenRead& read) {
    const std::string& value = Input(node, read.input);
    if (fixed_.Has(value))
      return Because(DeclineCode::kTokensMixed, "{}: constant '{}' has a row for each token", Describe(node), value);
    reads_.insert({&node, read.input});
    const Node* producer = graph_.Producer(value);
    // A mask of an attention is made of its tokens in ways of its own: all rows, of which the last is taken.
    const bool is_mask = IsAttentionOp(node) && read.input != 0;
    // The output of the last own layer: its keys do not depend on it.
    const bool is_before = producer != nullptr && IsAttentionOp(*producer) && !layers_.contains(producer);
    if (IsLastToken(graph_, value)) return {};
    if (producer == nullptr || elsewhere_.contains(producer) || is_mask || is_before) return Cut(node, read);
    const auto [found, is_new] = plan_.narrowed.try_emplace(value, read.axis);
    return is_new || found->second == read.axis ? Decline() : Unlike(value);
  }

  Decline Cut(const Node& node, const TokenRead& read) {
    const std::string& value = Input(node, read.input);
    const int64_t rank = ranks_.Of(value);
    if (rank < 0) return UnknownShape(node, value);
    const auto batch = BatchAxis(value);
    if (rank + read.axis < 1 || !batch || *batch == rank + read.axis)
      return Because(DeclineCode::kTokensMixed, "{}: '{}' is one for all sequences, whose last tokens may differ",
                     Describe(node), value);
    plan_.cuts.push_back({&node, read.input, read.axis, rank, *batch});
    return {};
  }

  // The axis of the sequences: the first, unless its extent is not the logits'.
  std::optional<int64_t> BatchAxis(const std::string& value) const {
    const auto shape = graph_.Shape(value);
    const auto logits = graph_.Shape(plan_.logits);
    const bool is_first =
        !shape || !logits || shape->empty() || shape->front() < 0 || shape->front() == logits->front();
    if (is_first) return 0;
    const std::string name = graph_.ExtentName(plan_.logits, 0);
    for (int64_t axis = 1; axis < static_cast<int64_t>(shape->size()) && !name.empty(); ++axis)
      if (graph_.ExtentName(value, axis) == name) return axis;
    return std::nullopt;
  }

  static Decline Unlike(const std::string& value) {
    return Because(DeclineCode::kTokensMixed, "'{}' is read as if its tokens lay along two axes", value);
  }

  // All of them take the tokens as this part does, or only ask for other extents.
  Decline CheckReadersOf(const std::string& value, int64_t axis) {
    for (const Node* reader : graph_.Consumers(value)) {
      const int64_t rank = ranks_.Of(value);
      if (!needed_.contains(reader) || (rank >= 0 && AsksOtherExtents(*reader, rank + axis))) continue;
      if (graph_.IsOnnx(reader, "Shape") && OnlyNamesShapes(reader->output(0), 0)) continue;
      bool known = graph_.BodiesOf(*reader).empty();
      for (int i = 0; i < reader->input_size(); ++i)
        known = known && (reader->input(i) != value || reads_.contains({reader, i}));
      if (!known)
        return Because(DeclineCode::kValueIsRead, "'{}' is read by {} for all tokens", value, Describe(*reader));
    }
    return {};
  }

  bool AsksOtherExtents(const Node& node, int64_t tokens) const {
    if (!graph_.IsOnnx(&node, "Shape")) return false;
    const int64_t begin = IntAttribute(node, "start");
    const int64_t end = FindAttribute(node, "end") == nullptr ? tokens + 1 : IntAttribute(node, "end");
    if (begin >= 0 && end >= 0 && (tokens < begin || tokens >= end)) return true;
    if (begin != 0 || graph_.IsOutput(node.output(0))) return false;
    const auto& readers = graph_.Consumers(node.output(0));
    return std::all_of(readers.begin(), readers.end(), [&](const Node* reader) {
      const auto index = graph_.IsOnnx(reader, "Gather") ? graph_.Ints(Input(*reader, 1)) : std::nullopt;
      return index && std::all_of(index->begin(), index->end(), [&](int64_t i) { return i >= 0 && i != tokens; });
    });
  }

  // Do only the shapes of Reshape nodes depend on `value`, which are replaced?
  bool OnlyNamesShapes(const std::string& value, int depth) const {
    constexpr int kMostNodes = 4;  // Shape, Gather, Unsqueeze, Concat
    const auto& readers = graph_.Consumers(value);
    return depth < kMostNodes && !graph_.IsOutput(value) &&
           std::all_of(
               readers.begin(), readers.end(),
               [&](const Node* reader) {
                 if (graph_.IsOnnx(reader, "Reshape"))
                   return Input(*reader, 0) != value && plan_.shapes.contains(reader);
                 const bool hands_on = graph_.IsOnnx(reader, "Gather") || graph_.IsOnnx(reader, "Unsqueeze") ||
                                       graph_.IsOnnx(reader, "Cast") || graph_.IsOnnx(reader, "Concat");
                 return hands_on && OnlyNamesShapes(reader->output(0), depth + 1);
               });
  }

  const Graph& graph_;
  FixedValues fixed_;
  const Ranks& ranks_;
  std::unordered_set<const Node*> needed_;
  std::unordered_set<const Node*> elsewhere_;  // by another output than the logits
  LastTokenPlan& plan_;
  std::unordered_map<const Node*, const Layer*> layers_;
  std::set<std::pair<const Node*, int>> reads_;
};

}  // namespace

Matched<LastTokenPlan> MatchLastToken(const Graph& graph, const std::vector<Layer>& layers) {
  LastTokenPlan plan;
  KVSHARE_ASSIGN_OR_RETURN(const auto behind, LayersBehind(graph, layers));
  plan.first = behind.front().node;
  const Ranks ranks(graph);
  KVSHARE_ASSIGN_OR_RETURN(plan.logits, FindLogits(graph, ranks, behind.front()));
  KVSHARE_RETURN_IF_ERROR(FindLast(*(behind.data() - 1), behind, plan));
  Walk walk(graph, ranks, behind, plan);
  KVSHARE_RETURN_IF_ERROR(walk.Run());
  return plan;
}

}  // namespace kvshare::graph
