// Masks that number the keys by a running count of the ones in attention_mask, as mobius writes them.
//
// With mask [B, T] (1 = keep), c = CumSum(mask, 1) numbers the keys; query s stands at column T-S+s:
//   kv   = Unsqueeze(c, [1])                        q = Unsqueeze(Slice(c, T-S, T, axes [1]), [2])
//   causal   GreaterOrEqual(q, kv)                  window W   Less(Sub(q, kv), W)
//            or what else compares sums of these and of numbers to the same end, such as LessOrEqual(Sub(kv, q), 0)
//   padding  Cast(bool, Unsqueeze(mask, [1])), or Unsqueeze(Cast(mask, bool), [1]), also expanded to [B, S, T]
//   bool mask  And of these          float mask  Unsqueeze(Cast?(Where(bool mask, 0, MIN)), [1])
// Identity nodes may lie between, mask may be the first columns of an input and cast to int64 or int32 first, and T, S,
// T-S and W may be numbers or computed.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>

#include "graph/extents.h"
#include "graph/masks/constant.h"
#include "graph/masks/dialect.h"

namespace kvshare::graph {
namespace {

// Exporters join three or four; a graph may share and nest them so that reading all would never end.
constexpr int kMostConditions = 64;
constexpr int kMostSums = 8;

Decline Odd(const Node& node, const std::string& fact) {
  return Because(DeclineCode::kMaskUnknown, "mask: {} {}", Describe(node), fact);
}

// The node that makes `value`, Identity nodes aside.
const Node* Maker(const Graph& graph, const std::string& value) { return graph.Producer(graph.Origin(value)); }

bool CastsTo(const Graph& graph, const Node* node, std::initializer_list<int64_t> types) {
  return graph.IsOnnx(node, "Cast") && std::find(types.begin(), types.end(), IntAttribute(*node, "to")) != types.end();
}

// Axes of a rank-`rank` value, negative ones counted from its end.
bool HasAxis(const Graph& graph, const Node& node, int input, int64_t axis, int64_t rank) {
  const auto axes = KnownInts(graph, Input(node, input));
  return axes && axes->size() == 1 && (axes->front() == axis || axes->front() == axis - rank);
}

// Slice(mask, 0, N, [1]): the first columns, as many as there are keys, as drafters take them.
bool IsFirstColumns(const Graph& graph, const Node* node) {
  return graph.IsOnnx(node, "Slice") && graph.IsInput(graph.Origin(Input(*node, 0))) &&
         KnownInts(graph, Input(*node, 1)) == std::vector<int64_t>{0} && HasAxis(graph, *node, 3, 1, 2) &&
         (Input(*node, 4).empty() || KnownInts(graph, Input(*node, 4)) == std::vector<int64_t>{1});
}

// The graph input [B, T] behind `value`, or its first columns, a cast to another integer type allowed.
Matched<std::string> MaskInput(const Graph& graph, const std::string& value) {
  const std::string& input = BeforeCast(graph, value);
  const Node* slice = graph.Producer(input);
  const bool is_first = IsFirstColumns(graph, slice);
  if (!is_first && !graph.IsInput(input)) {
    if (const Node* node = graph.Producer(input)) return Odd(*node, "makes the padding; needs a graph input there");
    return Because(DeclineCode::kMaskUnknown, "mask: '{}' is a constant; needs a graph input there", value);
  }
  const int type = graph.ElementType(is_first ? graph.Origin(Input(*slice, 0)) : input);
  if (type != 0 && type != onnx::TensorProto::INT64 && type != onnx::TensorProto::INT32 &&
      type != onnx::TensorProto::BOOL)
    return Because(DeclineCode::kMaskInputType, "mask: '{}' has element type {}; needs int64, int32 or bool", input,
                   type);
  return input;
}

// c = CumSum(mask, 1): gives mask.
Matched<std::string> PositionsOf(const Graph& graph, const std::string& value) {
  const Node* node = Maker(graph, value);
  if (node == nullptr)
    return Because(DeclineCode::kMaskUnknown, "mask: positions come from '{}'; need CumSum of a mask", value);
  if (!graph.IsOnnx(node, "CumSum")) return Odd(*node, "gives the positions; needs CumSum of a mask");
  if (!HasAxis(graph, *node, 1, 1, 2)) return Odd(*node, "does not run along axis 1");
  if (Differs(*node, "exclusive") || Differs(*node, "reverse")) return Odd(*node, "is exclusive or reversed");
  return MaskInput(graph, Input(*node, 0));
}

struct QueryPositions {
  std::string counts;  // c
  std::string mask;
  std::string query;
  int64_t queries = -1;
};

// The S in T-S, the start of the slice: by name where it is a computed difference, else by number.
std::optional<Extent> QueriesOf(const Graph& graph, const std::string& start, const std::string& mask) {
  const std::string& value = BeforeCast(graph, start);
  if (const Node* node = graph.Producer(value); graph.IsOnnx(node, "Sub")) {
    const auto total = ExtentOf(graph, Input(*node, 0));
    auto queries = ExtentOf(graph, Input(*node, 1));
    if (!total || !queries || !IsExtent(graph, *total, mask, 1)) return std::nullopt;
    return queries;
  }
  const auto known = KnownInts(graph, value);
  if (!known || known->size() != 1) return std::nullopt;
  if (known->front() < 0) return Extent{"", 0, -known->front()};  // counted from the end
  const auto shape = graph.Shape(mask);
  if (!shape || shape->size() != 2 || (*shape)[1] <= known->front()) return std::nullopt;
  return Extent{"", 0, (*shape)[1] - known->front()};
}

// Is it extent 1 of a value, as of tokens, or extent 2 of an Attention's query [B, H, S, D]?
bool IsOfTokens(const Graph& graph, const Extent& extent) {
  if (extent.axis != 2) return extent.of.empty() || extent.axis == 1;
  return std::ranges::any_of(graph.Consumers(extent.of), [&](const Node* reader) {
    return graph.IsOnnx(reader, "Attention") && graph.Origin(Input(*reader, 0)) == extent.of &&
           FindAttribute(*reader, "q_num_heads") == nullptr;
  });
}

// Slice(c, T-S, T, axes [1]), with T of c's own mask.
Matched<QueryPositions> ReadSlice(const Graph& graph, const Node& slice) {
  KVSHARE_ASSIGN_OR_RETURN(const std::string mask, PositionsOf(graph, Input(slice, 0)));
  const Decline wrong = Odd(slice, "does not take the last S columns of the positions");
  if (!HasAxis(graph, slice, 3, 1, 2)) return wrong;
  if (!Input(slice, 4).empty() && KnownInts(graph, Input(slice, 4)) != std::vector<int64_t>{1}) return wrong;
  const auto end = ExtentOf(graph, Input(slice, 2));
  const bool to_the_end =
      end && (IsExtent(graph, *end, mask, 1) || (end->number && *end->number >= std::numeric_limits<int32_t>::max()));
  if (!to_the_end) return wrong;
  const auto queries = QueriesOf(graph, Input(slice, 1), mask);
  if (!queries || !queries->IsKnown() || queries->of == mask || !IsOfTokens(graph, *queries)) return wrong;
  return QueryPositions{graph.Origin(Input(slice, 0)), mask, queries->of, queries->number.value_or(-1)};
}

// A sum of q, kv and a number.
struct Positions {
  int64_t number = 0;
  int64_t queries = 0;  // how often q is in it
  int64_t keys = 0;
  const Node* slice = nullptr;  // that q is made of
  std::string counts = {};      // that kv is made of
};

std::optional<Positions> Subtract(Positions left, const Positions& right) {
  const bool two_slices = left.slice != nullptr && right.slice != nullptr && left.slice != right.slice;
  const bool two_counts = !left.counts.empty() && !right.counts.empty() && left.counts != right.counts;
  if (two_slices || two_counts) return std::nullopt;
  left.number -= right.number;
  left.queries -= right.queries;
  left.keys -= right.keys;
  if (left.slice == nullptr) left.slice = right.slice;
  if (left.counts.empty()) left.counts = right.counts;
  return left;
}

// Nothing where there is anything else in it.
std::optional<Positions> SumOfPositions(const Graph& graph, const std::string& value, int sums = 0) {
  if (const auto known = KnownInts(graph, value)) {
    if (known->size() != 1 || std::abs(known->front()) > std::numeric_limits<int32_t>::max()) return std::nullopt;
    return Positions{known->front()};
  }
  const Node* node = graph.Producer(BeforeCast(graph, value));
  if (graph.IsOnnx(node, "Add") || graph.IsOnnx(node, "Sub")) {
    if (sums == kMostSums) return std::nullopt;
    const auto left = SumOfPositions(graph, Input(*node, 0), sums + 1);
    auto right = SumOfPositions(graph, Input(*node, 1), sums + 1);
    if (!left || !right) return std::nullopt;
    if (graph.IsOnnx(node, "Add")) right = Subtract({}, *right);
    return Subtract(*left, *right);
  }
  if (!graph.IsOnnx(node, "Unsqueeze")) return std::nullopt;
  Positions found;
  if (const Node* slice = Maker(graph, Input(*node, 0));
      graph.IsOnnx(slice, "Slice") && HasAxis(graph, *node, 1, 2, 3)) {
    found.queries = 1;
    found.slice = slice;
    return found;
  }
  if (!HasAxis(graph, *node, 1, 1, 3)) return std::nullopt;
  found.keys = 1;
  found.counts = graph.Origin(Input(*node, 0));
  return found;
}

// `read` counts the conditions of one mask.
Matched<MaskMeaning> ReadCondition(const Graph& graph, const std::string& value, int& read);

Matched<MaskMeaning> ReadAnd(const Graph& graph, const Node& node, int& read) {
  KVSHARE_ASSIGN_OR_RETURN(MaskMeaning left, ReadCondition(graph, Input(node, 0), read));
  KVSHARE_ASSIGN_OR_RETURN(const MaskMeaning right, ReadCondition(graph, Input(node, 1), read));
  if (left.key_mask != right.key_mask)
    return Odd(node,
               fmt::format("joins conditions on '{}' and on '{}'; needs one mask", left.key_mask, right.key_mask));
  if (!left.query.empty() && !right.query.empty() && left.query != right.query)
    return Odd(node, fmt::format("joins query lengths of '{}' and of '{}'", left.query, right.query));
  if (left.window >= 0 && right.window >= 0) return Odd(node, "joins two windows");
  left.window = std::max(left.window, right.window);
  left.causal = left.causal || right.causal;
  left.padding = left.padding || right.padding;
  if (left.query.empty()) left.query = right.query;
  if (left.queries >= 0 && right.queries >= 0 && left.queries != right.queries)
    return Odd(node, fmt::format("joins query lengths of {} and of {}", left.queries, right.queries));
  left.queries = std::max(left.queries, right.queries);
  return left;
}

// left >= right, and so on, of integers.
struct Comparison {
  const char* op;
  bool is_turned;
  int64_t slack;  // left - right is at least this
};
constexpr std::array<Comparison, 4> kComparisons = {
    {{"GreaterOrEqual", false, 0}, {"Greater", false, 1}, {"LessOrEqual", true, 0}, {"Less", true, 1}}};

const Comparison* ComparisonOf(const Graph& graph, const Node* node) {
  const auto found = std::ranges::find_if(kComparisons, [&](const auto& each) { return graph.IsOnnx(node, each.op); });
  return found == kComparisons.end() ? nullptr : &*found;
}

Matched<MaskMeaning> ReadComparison(const Graph& graph, const Node& node, const Comparison& comparison) {
  const auto left = SumOfPositions(graph, Input(node, comparison.is_turned ? 1 : 0));
  const auto right = SumOfPositions(graph, Input(node, comparison.is_turned ? 0 : 1));
  const auto difference = left && right ? Subtract(*left, *right) : std::nullopt;
  if (!difference || difference->queries * difference->keys != -1)
    return Odd(node, "does not compare positions of queries [B,S,1] with positions of keys [B,1,T]");
  KVSHARE_ASSIGN_OR_RETURN(const QueryPositions at, ReadSlice(graph, *difference->slice));
  if (difference->counts != at.counts) return Odd(node, "compares positions that two different nodes count");
  MaskMeaning meaning;
  meaning.key_mask = at.mask;
  meaning.query = at.query;
  meaning.queries = at.queries;
  const int64_t reach = difference->number - comparison.slack;
  if (difference->queries == 1) {  // kv <= q + reach
    if (reach != 0) return Odd(node, fmt::format("lets a query see up to {} keys after its own", reach));
    meaning.causal = true;
  } else {  // kv >= q - reach
    meaning.window = reach + 1;
    if (meaning.window <= 0) return Odd(node, fmt::format("has a window of {}; needs at least 1", meaning.window));
  }
  return meaning;
}

Matched<MaskMeaning> Padding(const Graph& graph, const std::string& mask) {
  MaskMeaning meaning;
  KVSHARE_ASSIGN_OR_RETURN(meaning.key_mask, MaskInput(graph, mask));
  meaning.padding = true;
  return meaning;
}

// Is it the mask's B, or an extent 0 that takes the place of B in a value computed beside it? An extent of 1 changes
// nothing.
bool IsBatch(const Graph& graph, const Extent& extent, const std::string& mask) {
  return extent.number == 1 || (!extent.of.empty() && extent.axis == 0) || IsExtent(graph, extent, mask, 0);
}

// Expand(condition, [B, S, T]): changes no element.
Matched<MaskMeaning> ReadExpand(const Graph& graph, const Node& node, int& read) {
  KVSHARE_ASSIGN_OR_RETURN(MaskMeaning meaning, ReadCondition(graph, Input(node, 0), read));
  const Decline wrong = Odd(node, "does not expand to [B, S, T]");
  const auto shape = ExtentsOf(graph, Input(node, 1));
  if (!shape || shape->size() != 3 || !IsBatch(graph, (*shape)[0], meaning.key_mask) ||
      !IsExtent(graph, (*shape)[2], meaning.key_mask, 1))
    return wrong;
  const Extent& queries = (*shape)[1];
  if (!queries.IsKnown() || !IsOfTokens(graph, queries)) return wrong;
  if (!meaning.query.empty() && !queries.of.empty() && meaning.query != queries.of) return wrong;
  const int64_t number = queries.number.value_or(-1);
  if (meaning.queries >= 0 && number >= 0 && meaning.queries != number) return wrong;
  if (meaning.query.empty()) meaning.query = queries.of;
  meaning.queries = std::max(meaning.queries, number);
  return meaning;
}

// A bool value of rank 3.
Matched<MaskMeaning> ReadCondition(const Graph& graph, const std::string& value, int& read) {
  const Node* node = Maker(graph, value);
  if (node == nullptr && graph.ConstantTensor(graph.Origin(value)) != nullptr)
    return Because(DeclineCode::kMaskUnknown, "mask: '{}' is a constant among conditions; its meaning is not known",
                   value);
  if (node == nullptr)
    return Because(DeclineCode::kMaskUnknown, "mask: '{}' is given from outside; its meaning is not known", value);
  if (++read > kMostConditions) return Odd(*node, fmt::format("is one of more than {} conditions", kMostConditions));
  if (graph.IsOnnx(node, "And")) return ReadAnd(graph, *node, read);
  if (const Comparison* comparison = ComparisonOf(graph, node)) return ReadComparison(graph, *node, *comparison);
  if (graph.IsOnnx(node, "Expand")) return ReadExpand(graph, *node, read);
  if (CastsTo(graph, node, {onnx::TensorProto::BOOL})) {
    const Node* wide = Maker(graph, Input(*node, 0));
    if (graph.IsOnnx(wide, "Unsqueeze") && HasAxis(graph, *wide, 1, 1, 3)) return Padding(graph, Input(*wide, 0));
  }
  if (graph.IsOnnx(node, "Unsqueeze") && HasAxis(graph, *node, 1, 1, 3)) {
    const Node* flag = Maker(graph, Input(*node, 0));
    if (CastsTo(graph, flag, {onnx::TensorProto::BOOL})) return Padding(graph, Input(*flag, 0));
  }
  return Odd(*node, "is not one of And, comparisons of positions, Expand and padding as exporters write them");
}

Matched<MaskMeaning> ReadWhere(const Graph& graph, const Node& node) {
  const auto keep = KnownScalar(graph, Input(node, 1));
  const auto hide = KnownScalar(graph, Input(node, 2));
  if (!keep || *keep != 0.0 || !hide || !(*hide <= kHides))
    return Odd(node, fmt::format("adds {} to what it keeps and {} to the rest; needs 0 and at most {}",
                                 keep ? fmt::format("{}", *keep) : "a computed value",
                                 hide ? fmt::format("{}", *hide) : "a computed value", kHides));
  int read = 0;
  return ReadCondition(graph, Input(node, 0), read);
}

// A float mask, or a bool one, of rank 3.
Matched<MaskMeaning> ReadRank3(const Graph& graph, const std::string& value) {
  const Node* node = Maker(graph, value);
  if (CastsTo(graph, node,
              {onnx::TensorProto::FLOAT, onnx::TensorProto::FLOAT16, onnx::TensorProto::BFLOAT16,
               onnx::TensorProto::DOUBLE}))
    node = Maker(graph, Input(*node, 0));
  if (graph.IsOnnx(node, "Where")) return ReadWhere(graph, *node);
  int read = 0;
  return ReadCondition(graph, value, read);
}

// Padding alone, of rank 3: what lies below an Unsqueeze of it is no mask of rank 3.
bool IsFlag(const Graph& graph, const Node* node) {
  return CastsTo(graph, node, {onnx::TensorProto::BOOL}) && graph.IsInput(BeforeCast(graph, Input(*node, 0)));
}

}  // namespace

Matched<MaskMeaning> ReadCumSumMask(const Graph& graph, const std::string& mask) {
  const Node* node = Maker(graph, mask);
  if (graph.IsOnnx(node, "Unsqueeze") && HasAxis(graph, *node, 1, 1, 4)) {
    const Node* inner = Maker(graph, Input(*node, 0));
    if (inner != nullptr && !IsFlag(graph, inner)) {
      KVSHARE_ASSIGN_OR_RETURN(MaskMeaning meaning, ReadRank3(graph, Input(*node, 0)));
      meaning.rank = 4;
      return meaning;
    }
  }
  return ReadRank3(graph, mask);
}

}  // namespace kvshare::graph
