#include "graph/match/token_reads.h"

#include <algorithm>
#include <array>
#include <functional>
#include <limits>
#include <numeric>

#include "graph/extents.h"

namespace kvshare::graph {

FixedValues::FixedValues(const Graph& graph) {
  for (const auto& input : graph.proto().input()) open_.insert(input.name());
  for (const Node* node : graph.nodes()) {
    const auto names = ReadNames(*node);
    if (std::any_of(names.begin(), names.end(), [&](const auto& name) { return open_.contains(name); }))
      open_.insert(node->output().begin(), node->output().end());
  }
}

namespace {

using Reads = Matched<TokenReads>;

struct Asked {
  const Graph& graph;
  const FixedValues& fixed;
  const Ranks& ranks;
  const std::string& logits;
  const Node& node;
  int64_t axis;  // from the end

  bool IsFixed(int input) const { return fixed.Has(Input(node, input)); }
  int64_t RankOf(int input) const { return ranks.Of(Input(node, input)); }
};

Decline Mixed(const Node& node) {
  return Because(DeclineCode::kTokensMixed, "{}: is not known to compute each token on its own", Describe(node));
}

// The extent of `value` along the tokens' axis; 1 where it has no such axis, nothing where that is not known.
std::optional<int64_t> ExtentFromEnd(const Asked& asked, const std::string& value) {
  const int64_t rank = asked.ranks.Of(value);
  if (rank < 0) return std::nullopt;
  if (rank < -asked.axis) return 1;
  const auto shape = asked.graph.Shape(value);
  return shape ? (*shape)[static_cast<size_t>(rank + asked.axis)] : -1;
}

// Broadcasting: an input has the tokens on the same axis, or one row for all.
Reads ReadElementwise(const Asked& asked) {
  TokenReads reads;
  for (int i = 0; i < asked.node.input_size(); ++i) {
    const std::string& value = asked.node.input(i);
    if (value.empty()) continue;
    const auto extent = ExtentFromEnd(asked, value);
    if (!extent) return UnknownShape(asked.node, value);
    if (*extent == 1) continue;
    if (asked.IsFixed(i))
      return Because(DeclineCode::kTokensMixed, "{}: constant '{}' has a row for each token", Describe(asked.node),
                     value);
    reads.inputs.push_back({i, asked.axis});
  }
  return reads;
}

// Attribute `name` as an axis from the end.
std::optional<int64_t> AxisAttribute(const Asked& asked, const char* name, const std::string& of) {
  const int64_t axis = IntAttribute(asked.node, name);
  if (axis < 0) return axis;
  const int64_t rank = asked.ranks.Of(of);
  return rank < 0 ? std::nullopt : std::optional(axis - rank);
}

// Norms over the last axes, from `axis` on; of the first `kInputs` inputs.
template <int kInputs>
Reads ReadNorm(const Asked& asked) {
  const auto first = FindAttribute(asked.node, "axis") == nullptr ? std::optional<int64_t>(-1)
                                                                  : AxisAttribute(asked, "axis", Input(asked.node, 0));
  if (!first) return UnknownShape(asked.node, Input(asked.node, 0));
  if (asked.axis >= *first) return Mixed(asked.node);
  TokenReads reads;
  for (int i = 0; i < kInputs; ++i) reads.inputs.push_back({i, asked.axis});
  return reads;
}

// Softmax and its like, Split, Concat: along one axis, which is not the tokens'.
Reads ReadAlongAxis(const Asked& asked) {
  // Before opset 13 Softmax took all axes behind the first one.
  if (FindAttribute(asked.node, "axis") == nullptr) return Mixed(asked.node);
  const auto along = AxisAttribute(asked, "axis", Input(asked.node, 0));
  if (!along) return UnknownShape(asked.node, Input(asked.node, 0));
  if (*along == asked.axis) return Mixed(asked.node);
  TokenReads reads;
  const int count = asked.node.op_type() == "Concat" ? asked.node.input_size() : 1;
  for (int i = 0; i < count; ++i) {
    if (asked.IsFixed(i)) return Mixed(asked.node);
    reads.inputs.push_back({i, asked.axis});
  }
  return reads;
}

// [.., S, K] times weights [K, N]; or a matrix of each token times another. A vector of weights would take an axis
// away.
Reads ReadMatMul(const Asked& asked) {
  const int64_t rank = asked.RankOf(1);
  if (asked.axis <= -3 && rank >= -asked.axis && asked.RankOf(0) >= -asked.axis) return ReadElementwise(asked);
  if (asked.axis > -2 || !asked.IsFixed(1) || rank != 2) return Mixed(asked.node);
  return TokenReads{{{0, asked.axis}}};
}

// ONNX Runtime's own: its second factor may be turned, as weights are.
Reads ReadFusedMatMul(const Asked& asked) {
  for (const char* moves_tokens : {"transA", "transBatchA", "transBatchB"})
    if (Differs(asked.node, moves_tokens)) return Mixed(asked.node);
  return ReadMatMul(asked);
}

Reads ReadMatMulNBits(const Asked& asked) {
  if (asked.axis > -2) return Mixed(asked.node);
  for (int i = 1; i < asked.node.input_size(); ++i)
    if (!Input(asked.node, i).empty() && !asked.IsFixed(i)) return Mixed(asked.node);
  return TokenReads{{{0, asked.axis}}};
}

// `axes` by attribute or by input 1, from the end; nothing where they are not known.
std::optional<std::vector<int64_t>> Axes(const Asked& asked, int64_t rank) {
  auto axes = IntsAttribute(asked.node, "axes");
  if (!axes && !Input(asked.node, 1).empty()) axes = KnownInts(asked.graph, Input(asked.node, 1));
  if (!axes || rank < 0) return std::nullopt;
  for (int64_t& axis : *axes) axis = axis < 0 ? axis : axis - rank;
  return axes;
}

bool Contains(const std::vector<int64_t>& axes, int64_t axis) {
  return std::find(axes.begin(), axes.end(), axis) != axes.end();
}

Reads ReadReduce(const Asked& asked) {
  const auto axes = Axes(asked, asked.RankOf(0));
  if (!axes || axes->empty() || Contains(*axes, asked.axis)) return Mixed(asked.node);
  // An axis that goes moves none of those behind it.
  const bool all_before = std::ranges::all_of(*axes, [&](int64_t axis) { return axis < asked.axis; });
  if (Differs(asked.node, "keepdims") && !all_before) return Mixed(asked.node);
  return TokenReads{{{0, asked.axis}}};
}

Reads ReadUnsqueeze(const Asked& asked) {
  const int64_t rank = asked.ranks.Of(asked.node.output(0));
  const auto axes = Axes(asked, rank);
  if (!axes) return UnknownShape(asked.node, asked.node.output(0));
  if (Contains(*axes, asked.axis)) return Mixed(asked.node);
  // Axes behind the tokens that are new.
  const auto behind = std::count_if(axes->begin(), axes->end(), [&](int64_t axis) { return axis > asked.axis; });
  return TokenReads{{{0, asked.axis + behind}}};
}

Reads ReadSqueeze(const Asked& asked) {
  auto axes = Axes(asked, asked.RankOf(0));
  if (!axes) return UnknownShape(asked.node, Input(asked.node, 0));
  // From the end on: each axis that went from behind the tokens, or from their place, moves them.
  std::sort(axes->begin(), axes->end(), std::greater<>());
  int64_t axis = asked.axis;
  for (const int64_t gone : *axes) axis -= gone >= axis ? 1 : 0;
  return TokenReads{{{0, axis}}};
}

Reads ReadTranspose(const Asked& asked) {
  const auto perm = IntsAttribute(asked.node, "perm");
  if (!perm) return Mixed(asked.node);
  const auto rank = static_cast<int64_t>(perm->size());
  if (rank + asked.axis < 0) return Mixed(asked.node);
  return TokenReads{{{0, (*perm)[static_cast<size_t>(rank + asked.axis)] - rank}}};
}

// Is it [-1:] along one axis? Of one token it takes that one.
bool TakesLastRow(const Asked& asked) {
  const auto begin = KnownInts(asked.graph, Input(asked.node, 1));
  const auto end = KnownInts(asked.graph, Input(asked.node, 2));
  const bool by_one =
      Input(asked.node, 4).empty() || KnownInts(asked.graph, Input(asked.node, 4)) == std::vector<int64_t>{1};
  return by_one && begin == std::vector<int64_t>{-1} && end && end->size() == 1 &&
         end->front() >= std::numeric_limits<int32_t>::max();
}

Reads ReadSlice(const Asked& asked) {
  const auto axes = KnownInts(asked.graph, Input(asked.node, 3));
  if (!axes) return Mixed(asked.node);
  const int64_t rank = asked.RankOf(0);
  if (rank < 0) return UnknownShape(asked.node, Input(asked.node, 0));
  for (const int64_t axis : *axes)
    if ((axis < 0 ? axis : axis - rank) == asked.axis && !TakesLastRow(asked)) return Mixed(asked.node);
  return TokenReads{{{0, asked.axis}}};
}

// Expand and Tile: the tokens are as many as before.
Reads ReadRepeat(const Asked& asked) {
  const auto counts = KnownInts(asked.graph, Input(asked.node, 1));
  if (!counts) return Mixed(asked.node);
  const auto rank = static_cast<int64_t>(counts->size());
  if (rank + asked.axis >= 0 && (*counts)[static_cast<size_t>(rank + asked.axis)] != 1) return Mixed(asked.node);
  if (asked.RankOf(0) < -asked.axis) return UnknownShape(asked.node, Input(asked.node, 0));
  return TokenReads{{{0, asked.axis}}};
}

// Is `value` made of constants and of extents alone? What asks for extents is judged as their reader.
bool IsOfExtents(const Asked& asked, const std::string& value, int depth = 0) {
  constexpr int kMostNodes = 8;
  if (asked.fixed.Has(value)) return true;
  const Node* node = asked.graph.Producer(value);
  if (node == nullptr || depth > kMostNodes || !asked.graph.BodiesOf(*node).empty()) return false;
  if (asked.graph.IsOnnx(node, "Shape")) return true;
  return std::ranges::all_of(
      node->input(), [&](const std::string& input) { return input.empty() || IsOfExtents(asked, input, depth + 1); });
}

// Whole slices of the first axes are replaced, behind which the tokens lie.
Reads ReadScatter(const Asked& asked) {
  const int64_t rank = asked.RankOf(0);
  const auto indices = asked.graph.Shape(Input(asked.node, 1));
  if (rank < 0 || !indices || indices->empty() || indices->back() <= 0)
    return UnknownShape(asked.node, Input(asked.node, rank < 0 ? 0 : 1));
  if (rank + asked.axis < indices->back() || !IsOfExtents(asked, Input(asked.node, 1))) return Mixed(asked.node);
  if (asked.IsFixed(0) || asked.IsFixed(2)) return Mixed(asked.node);
  return TokenReads{{{0, asked.axis}, {2, asked.axis}}};
}

// Rows of a table by token, or fixed rows of what each token has.
Reads ReadGather(const Asked& asked) {
  const std::string& data = Input(asked.node, 0);
  const int64_t data_rank = asked.ranks.Of(data);
  const auto along = AxisAttribute(asked, "axis", data);
  if (data_rank < 0 || !along) return UnknownShape(asked.node, data);
  const int64_t rows = -1 - *along;  // axes of data behind the gathered one
  if (asked.IsFixed(0)) {            // the axes of the indices stand in the gathered one's place
    const int64_t axis = asked.axis + rows;
    if (axis >= 0 || asked.RankOf(1) < -axis) return Mixed(asked.node);
    return TokenReads{{{1, axis}}};
  }
  const int64_t index_rank = asked.RankOf(1);
  if (!asked.IsFixed(1) || index_rank < 0) return Mixed(asked.node);
  if (asked.axis >= -rows) return TokenReads{{{0, asked.axis}}};
  if (asked.axis >= -rows - index_rank) return Mixed(asked.node);
  return TokenReads{{{0, asked.axis + index_rank - 1}}};
}

int64_t Product(const std::vector<int64_t>& numbers, size_t begin) {
  return std::accumulate(
      numbers.begin() + static_cast<std::ptrdiff_t>(begin), numbers.end(), int64_t{1},
      [](int64_t a, int64_t b) { return a < 0 || b <= 0 || a > (int64_t{1} << 40) / b ? -1 : a * b; });
}

// Does element `axis` of a Reshape's shape say what its input has there already?
bool Keeps(const Asked& asked, const Extent& extent, int64_t axis, int64_t tokens) {
  const Graph& graph = asked.graph;
  const std::string& value = Input(asked.node, 0);
  if (extent.of.empty() && extent.number == 0) return true;
  if (IsExtent(graph, extent, value, axis)) return true;
  const std::string name = extent.of.empty() ? "" : graph.ExtentName(extent.of, extent.axis);
  if (name.empty()) return false;
  return name == graph.ExtentName(value, axis) || (axis == tokens && name == graph.ExtentName(asked.logits, 1)) ||
         (axis == 0 && tokens == 1 && name == graph.ExtentName(asked.logits, 0));
}

// [B, S, a] and [B, S, b, c]: the axes up to the tokens' stay what they are, one of which may be written as -1.
Reads ReadReshape(const Asked& asked) {
  const std::string& value = Input(asked.node, 0);
  const auto extents = ExtentsOf(asked.graph, Input(asked.node, 1));
  if (!extents) return Mixed(asked.node);
  // Beside allowzero, which PyTorch's exporter writes always, a 0 means no element.
  if (Differs(asked.node, "allowzero") && std::ranges::any_of(*extents, [](const Extent& e) { return e.number == 0; }))
    return Mixed(asked.node);
  const auto rank = static_cast<int64_t>(extents->size());
  const int64_t tokens = rank + asked.axis;
  const int64_t value_rank = asked.ranks.Of(value);
  if (tokens < 0 || value_rank < 0) return UnknownShape(asked.node, value);
  if (value_rank <= tokens) return Mixed(asked.node);
  std::vector<int64_t> shape(static_cast<size_t>(rank), 0);
  int open = 0;
  for (int64_t i = 0; i < rank; ++i) {
    const Extent& extent = (*extents)[static_cast<size_t>(i)];
    const bool is_open = extent.of.empty() && extent.number == -1;
    open += i <= tokens && is_open ? 1 : 0;
    if (i <= tokens && !is_open && !Keeps(asked, extent, i, tokens)) return Mixed(asked.node);
    if (i > tokens && !extent.number) return Mixed(asked.node);
    if (i > tokens) shape[static_cast<size_t>(i)] = *extent.number;
  }
  if (open > 0) {  // it is what it was if the axes behind the tokens hold as much as before
    const auto before = asked.graph.Shape(value);
    const auto behind = static_cast<size_t>(tokens) + 1;
    if (!before || Product(*before, behind) < 1 || Product(*before, behind) != Product(shape, behind))
      return Mixed(asked.node);
  }
  const bool names_tokens = std::any_of(extents->begin(), extents->begin() + tokens + 1, [](const Extent& extent) {
    return !extent.of.empty() || (extent.number && *extent.number > 0);
  });
  TokenReads reads{{{0, tokens - value_rank}}};
  if (names_tokens) reads.shape = std::move(shape);
  return reads;
}

// ai.onnx: X, cos, sin, [position_ids]; tables of positions, or a row for each token.
Reads ReadRotary(const Asked& asked) {
  if (asked.axis != -2) return Mixed(asked.node);
  TokenReads reads{{{0, -2}}};
  if (!Input(asked.node, 3).empty()) {
    reads.inputs.push_back({3, -1});
    return reads;
  }
  for (const int table : {1, 2}) reads.inputs.push_back({table, -2});
  return reads;
}

// com.microsoft: input, position_ids, tables. position_ids of one element are an offset.
Reads ReadMicrosoftRotary(const Asked& asked) {
  if (asked.axis != -2 || asked.RankOf(1) != 2) return Mixed(asked.node);
  return TokenReads{{{0, -2}, {1, -1}}};
}

struct Row {
  std::string_view domain;
  std::string_view op;
  Reads (*read)(const Asked& asked);
};

constexpr std::array kRows = {
    Row{"", "RMSNormalization", ReadNorm<1>},
    Row{"", "LayerNormalization", ReadNorm<1>},
    Row{"", "SimplifiedLayerNormalization", ReadNorm<1>},
    Row{kMicrosoft, "SkipSimplifiedLayerNormalization", ReadNorm<2>},
    Row{kMicrosoft, "SkipLayerNormalization", ReadNorm<2>},
    Row{"", "LpNormalization", ReadAlongAxis},
    Row{"", "Softmax", ReadAlongAxis},
    Row{"", "LogSoftmax", ReadAlongAxis},
    Row{"", "Split", ReadAlongAxis},
    Row{"", "Concat", ReadAlongAxis},
    Row{"", "MatMul", ReadMatMul},
    Row{kMicrosoft, "FusedMatMul", ReadFusedMatMul},
    Row{kMicrosoft, "MatMulNBits", ReadMatMulNBits},
    Row{"", "ReduceMean", ReadReduce},
    Row{"", "ReduceSum", ReadReduce},
    Row{"", "ReduceMax", ReadReduce},
    Row{"", "ReduceL2", ReadReduce},
    Row{"", "ReduceSumSquare", ReadReduce},
    Row{"", "Unsqueeze", ReadUnsqueeze},
    Row{"", "Squeeze", ReadSqueeze},
    Row{"", "Transpose", ReadTranspose},
    Row{"", "Slice", ReadSlice},
    Row{"", "Expand", ReadRepeat},
    Row{"", "Tile", ReadRepeat},
    Row{"", "ScatterND", ReadScatter},
    Row{"", "Gather", ReadGather},
    Row{"", "Reshape", ReadReshape},
    Row{"", "RotaryEmbedding", ReadRotary},
    Row{kMicrosoft, "RotaryEmbedding", ReadMicrosoftRotary},
};

bool IsElementwise(const std::string& domain, const std::string& op) {
  static const std::unordered_set<std::string_view> onnx = {
      "Add",  "Sub", "Mul",  "Div",      "Pow",        "Where", "Min",       "Max",       "PRelu",       "Identity",
      "Cast", "Neg", "Abs",  "Sqrt",     "Reciprocal", "Exp",   "Log",       "Erf",       "Tanh",        "Sigmoid",
      "Relu", "Elu", "Gelu", "Softplus", "Clip",       "And",   "HardSwish", "LeakyRelu", "HardSigmoid", "Swish"};
  static const std::unordered_set<std::string_view> microsoft = {"QuickGelu", "FastGelu", "BiasGelu", "Gelu"};
  return domain.empty() ? onnx.contains(op) : domain == kMicrosoft && microsoft.contains(op);
}

// A function of the model whose nodes all broadcast or are norms over the last axis: so does and is the function.
bool ComputesEachTokenAlone(const onnx::FunctionProto& function) {
  return std::all_of(function.node().begin(), function.node().end(), [](const Node& node) {
    if (node.op_type() == "Constant") {
      const auto* tensor = FindAttribute(node, "value");
      return tensor == nullptr || tensor->t().dims_size() <= 1;
    }
    const bool is_norm = DomainOf(node).empty() && node.op_type() == "RMSNormalization";
    const auto* axis = FindAttribute(node, "axis");
    return is_norm ? axis == nullptr || (axis->ref_attr_name().empty() && axis->i() == -1)
                   : IsElementwise(DomainOf(node), node.op_type());
  });
}

// Is the node one of such a function?
bool CallsTokenwiseFunction(const Graph& graph, const Node& node) {
  const auto& functions = graph.model().functions();
  return std::any_of(functions.begin(), functions.end(), [&](const auto& function) {
    return function.name() == node.op_type() && function.domain() == node.domain() && ComputesEachTokenAlone(function);
  });
}

Reads ReadFunction(const Asked& asked) {
  return asked.axis < -1 && CallsTokenwiseFunction(asked.graph, asked.node) ? ReadElementwise(asked)
                                                                            : Mixed(asked.node);
}

// Nodes whose output has the rank of input 0.
bool KeepsRank(const std::string& op) {
  static const std::unordered_set<std::string_view> ops = {"RMSNormalization",
                                                           "LayerNormalization",
                                                           "SimplifiedLayerNormalization",
                                                           "SkipSimplifiedLayerNormalization",
                                                           "MatMulNBits",
                                                           "Transpose",
                                                           "Slice",
                                                           "Concat",
                                                           "Softmax",
                                                           "RotaryEmbedding",
                                                           "Attention"};
  return ops.contains(op);
}

}  // namespace

Decline UnknownShape(const Node& node, const std::string& value) {
  return Because(DeclineCode::kShapeUnknown, "{}: the shape of '{}' is not known", Describe(node), value);
}

Ranks::Ranks(const Graph& graph) : graph_(graph) {
  for (const Node* node : graph.nodes())
    for (int output = 0; output < node->output_size(); ++output)
      if (const int64_t rank = OfOutput(*node, output); rank >= 0) made_[node->output(output)] = rank;
}

int64_t Ranks::Of(const std::string& value) const {
  if (const auto shape = graph_.Shape(value)) return static_cast<int64_t>(shape->size());
  if (graph_.Scalar(value)) return 0;
  const auto found = made_.find(value);
  return found == made_.end() ? -1 : found->second;
}

int64_t Ranks::OfOutput(const Node& node, int output) const {
  if (graph_.IsModelFunction(node)) return CallsTokenwiseFunction(graph_, node) ? LargestInput(node) : -1;
  const std::string& op = node.op_type();
  const bool is_product = graph_.IsOnnx(&node, "MatMul") || (op == "FusedMatMul" && DomainOf(node) == kMicrosoft);
  if (is_product || IsElementwise(DomainOf(node), op)) return LargestInput(node);
  if (op == "GroupQueryAttention" && IsAttentionOp(node)) return output == 0 ? 3 : 4;
  if (graph_.IsOnnx(&node, "Gather")) {
    const int64_t data = Of(Input(node, 0));
    const int64_t indices = Of(Input(node, 1));
    return data < 0 || indices < 0 ? -1 : data + indices - 1;
  }
  if (graph_.IsOnnx(&node, "Reshape")) {
    const auto extents = ExtentsOf(graph_, Input(node, 1));
    return extents ? static_cast<int64_t>(extents->size()) : -1;
  }
  return KeepsRank(op) && (output == 0 || op.starts_with("Skip")) ? Of(Input(node, 0)) : -1;
}

int64_t Ranks::LargestInput(const Node& node) const {
  int64_t largest = 0;
  for (const auto& input : node.input()) {
    const int64_t rank = input.empty() ? 0 : Of(input);
    if (rank < 0) return -1;
    largest = std::max(largest, rank);
  }
  return largest;
}

Matched<TokenReads> ReadTokens(const Graph& graph, const FixedValues& fixed, const Ranks& ranks,
                               const std::string& logits, const Node& node, int64_t axis) {
  const Asked asked{graph, fixed, ranks, logits, node, axis};
  if (!graph.BodiesOf(node).empty()) return Mixed(node);
  if (graph.IsModelFunction(node)) return ReadFunction(asked);
  const std::string& domain = DomainOf(node);
  if (IsElementwise(domain, node.op_type())) return ReadElementwise(asked);
  for (const Row& row : kRows)
    if (row.op == node.op_type() && row.domain == domain) return row.read(asked);
  return Mixed(node);
}

}  // namespace kvshare::graph
