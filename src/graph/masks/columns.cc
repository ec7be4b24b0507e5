// Masks that compare columns, as PyTorch's exporter writes those of Hugging Face's decoders (opset 23 and later).
//
// With mask [B, total], P past and S new tokens, T = P + S:
//   kv  = Unsqueeze(Range(0, T, 1)) [1, 1, 1, T]        q = Unsqueeze(Range(0, S, 1) + P) [1, 1, S, 1]
//   causal   LessOrEqual(kv, q)                         window W   Greater(kv, q - W)
//   padding  GatherND(Cast(mask, bool), [b, kv]): the first T columns; or Unsqueeze(Cast(mask, bool), [1, 2]);
//            mask may have been reshaped to its own two axes
//   mask     Expand(And of these and of True, [B, 1, S, T])
// Of a cache that the model keeps to W - 1 rows, kv is Range(0, P + S, 1) + Max(0, P - (W - 1)): the node takes no mask
// that has more columns than its keys have rows, so the excess is 0 where it runs.
// Where shapes are fixed, tools fold what does not depend on the caller: a comparison, the indices of GatherND, or all.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>

#include "graph/extents.h"
#include "graph/masks/constant.h"
#include "graph/masks/dialect.h"

namespace kvshare::graph {
namespace {

constexpr int64_t kRank = 4;
constexpr int64_t kBatchAxis = 0;
constexpr int64_t kQueryAxis = 2;
constexpr int64_t kKeyAxis = 3;
// Exporters write a handful; a graph may share and nest them so that reading all would never end.
constexpr int kMostConditions = 64;
constexpr int kMostSteps = 16;

Decline Odd(const Node& node, const std::string& fact) {
  return Because(DeclineCode::kMaskUnknown, "mask: {} {}", Describe(node), fact);
}

const Node* Maker(const Graph& graph, const std::string& value) { return graph.Producer(graph.Origin(value)); }

// The numbers begin, begin + 1, ... along one axis of a value of rank 4.
struct Numbers {
  int64_t axis = 0;
  Sum begin;
  Sum count;
};

// Where axis `axis` of a value of rank `rank` lies after an Unsqueeze to `axes`; nothing where they make no sense.
std::optional<int64_t> AfterUnsqueeze(int64_t axis, int64_t rank, const std::vector<int64_t>& axes) {
  const auto to = rank + static_cast<int64_t>(axes.size());
  std::vector<bool> is_new(static_cast<size_t>(to));
  for (const int64_t each : axes) {
    const int64_t at = each < 0 ? each + to : each;
    if (at < 0 || at >= to || is_new[static_cast<size_t>(at)]) return std::nullopt;
    is_new[static_cast<size_t>(at)] = true;
  }
  for (int64_t at = 0, old = 0; at < to; ++at)
    if (!is_new[static_cast<size_t>(at)] && old++ == axis) return at;
  return std::nullopt;
}

// Those of a constant, whose extents but that of `axis` are 1: tools fold Range where its extent is fixed. A single
// number lies along the first axis.
std::optional<Numbers> ConstantNumbers(const Graph& graph, const std::string& value) {
  const auto ints = graph.Ints(value);
  const auto shape = graph.Shape(value);
  if (!ints || !shape || ints->empty() || shape->empty()) return std::nullopt;
  if (ints->front() < 0 || ints->front() > std::numeric_limits<int32_t>::max()) return std::nullopt;
  const auto longest = std::ranges::max_element(*shape);
  const auto count = static_cast<int64_t>(ints->size());
  if (*longest != count) return std::nullopt;
  for (int64_t at = 0; at < count; ++at)
    if ((*ints)[static_cast<size_t>(at)] != ints->front() + at) return std::nullopt;
  return Numbers{longest - shape->begin(), Sum{ints->front()}, Sum{count}};
}

// Unsqueeze nodes and sums with one number, in any order, of Range or such a constant.
std::optional<Numbers> NumbersOf(const Graph& graph, const std::string& value) {
  std::vector<std::vector<int64_t>> unsqueezes;
  Numbers numbers;
  int64_t rank = 1;
  std::string name = value;
  for (int step = 0; step < kMostSteps; ++step) {
    const std::string& origin = BeforeCast(graph, name);
    if (const auto constant = ConstantNumbers(graph, origin)) {
      numbers = {constant->axis, Add(numbers.begin, constant->begin), constant->count};
      rank = static_cast<int64_t>(graph.Shape(origin)->size());
      break;
    }
    const Node* node = graph.Producer(origin);
    if (graph.IsOnnx(node, "Unsqueeze")) {
      auto axes = KnownInts(graph, Input(*node, 1));
      if (!axes || axes->size() > kRank) return std::nullopt;
      unsqueezes.push_back(*std::move(axes));
      name = Input(*node, 0);
    } else if (graph.IsOnnx(node, "Add") || graph.IsOnnx(node, "Sub")) {
      const bool adds = node->op_type() == "Add";
      const auto right = SumOf(graph, Input(*node, 1));
      const auto left = right || !adds ? std::nullopt : SumOf(graph, Input(*node, 0));
      if (!left && !right) return std::nullopt;
      numbers.begin = adds ? Add(numbers.begin, right ? *right : *left) : Subtract(numbers.begin, *right);
      name = Input(*node, right ? 0 : 1);
    } else if (graph.IsOnnx(node, "Range")) {
      const auto start = SumOf(graph, Input(*node, 0));
      const auto limit = SumOf(graph, Input(*node, 1));
      const auto step_by = SumOf(graph, Input(*node, 2));
      if (!start || !limit || !step_by || !step_by->Is(1)) return std::nullopt;
      numbers.begin = Add(numbers.begin, *start);
      numbers.count = Subtract(*limit, *start);
      break;
    } else {
      return std::nullopt;
    }
  }
  for (auto axes = unsqueezes.rbegin(); axes != unsqueezes.rend(); ++axes) {
    const auto axis = AfterUnsqueeze(numbers.axis, rank, *axes);
    if (!axis) return std::nullopt;
    numbers.axis = *axis;
    rank += static_cast<int64_t>(axes->size());
  }
  return rank == kRank ? std::optional(std::move(numbers)) : std::nullopt;
}

// The meaning of a mask, as far as it has been read.
struct Found {
  MaskMeaning meaning;
  std::optional<Sum> queries;
  std::optional<Sum> keys;
  Sum excess = {};
};

// j < i, j <= i, ... of keys j and queries i, whichever way round the node has them.
struct Comparison {
  const char* op;
  const char* turned;
  bool is_upper;  // bounds j from above
  int64_t slack;  // j <= i + slack, or j > i - slack, as integers
};
constexpr std::array<Comparison, 4> kComparisons = {{{"LessOrEqual", "GreaterOrEqual", true, 0},
                                                     {"Less", "Greater", true, -1},
                                                     {"Greater", "Less", false, 0},
                                                     {"GreaterOrEqual", "LessOrEqual", false, 1}}};

// Columns of queries or keys that are at least 0, as all are: Hugging Face's masks of encoders are made so.
bool HidesNothing(const Graph& graph, const Node& node) {
  if (!graph.IsOnnx(&node, "GreaterOrEqual")) return false;
  const auto numbers = NumbersOf(graph, Input(node, 0));
  const auto bound = SumOf(graph, Input(node, 1));
  return numbers && bound && bound->Is(0) && IsNeverNegative(numbers->begin);
}

Matched<Found> ReadComparison(const Graph& graph, const Node& node) {
  if (HidesNothing(graph, node)) return Found{};
  if (graph.IsOnnx(Maker(graph, Input(node, 0)), "Abs"))
    return Odd(node, "bounds the distance between query and key in both directions");
  auto keys = NumbersOf(graph, Input(node, 0));
  auto queries = NumbersOf(graph, Input(node, 1));
  const bool is_turned = keys && keys->axis == kQueryAxis;
  if (is_turned) std::swap(keys, queries);
  if (!keys || !queries || keys->axis != kKeyAxis || queries->axis != kQueryAxis)
    return Odd(node, "does not compare columns of keys [1,1,1,T] with columns of queries [1,1,S,1]");
  const auto comparison = std::ranges::find_if(
      kComparisons, [&](const Comparison& each) { return node.op_type() == (is_turned ? each.turned : each.op); });
  // How far right of column T - S + s the node's query s stands.
  const Sum shift = Subtract(Subtract(queries->begin, keys->begin), Subtract(keys->count, queries->count));
  Sum excess = Subtract(Sum{shift.number}, shift);
  if (!IsExcess(excess))
    return Odd(
        node,
        fmt::format(
            "has its first query at column {}, and the first new one of its {} keys at {}; needs one column for both",
            TextOf(queries->begin), TextOf(keys->count),
            TextOf(Add(keys->begin, Subtract(keys->count, queries->count)))));
  Found found{{}, queries->count, keys->count, std::move(excess)};
  if (comparison->is_upper) {
    if (shift.number + comparison->slack != 0)
      return Odd(node, fmt::format("lets a query see up to {} keys after its own", shift.number + comparison->slack));
    found.meaning.causal = true;
  } else {
    found.meaning.window = comparison->slack - shift.number;
    if (found.meaning.window <= 0)
      return Odd(node, fmt::format("has a window of {}; needs at least 1", found.meaning.window));
  }
  return found;
}

// `value`, or the [B, total] that a Reshape to [B, -1] leaves as it is.
const std::string& BeforeSameRows(const Graph& graph, const std::string& value) {
  const Node* reshape = graph.Producer(value);
  if (!graph.IsOnnx(reshape, "Reshape")) return value;
  const std::string& rows = graph.Origin(Input(*reshape, 0));
  const auto from = graph.Shape(rows);
  const auto to = SumsOf(graph, Input(*reshape, 1));
  if (!from || from->size() != 2 || !to || to->size() != 2) return value;
  const auto stays = [&](int64_t axis) {
    const Sum& extent = (*to)[static_cast<size_t>(axis)];
    return extent == SumOfExtent(graph, rows, axis) || (extent.Is(0) && !Differs(*reshape, "allowzero"));
  };
  return stays(0) && (stays(1) || to->back().Is(-1)) ? rows : value;
}

// The value before a cast to bool.
Matched<std::string> BeforeFlags(const Graph& graph, const Node& reader, const std::string& value) {
  const std::string& flags = BeforeSameRows(graph, graph.Origin(value));
  const Node* cast = graph.Producer(flags);
  if (graph.IsOnnx(cast, "Cast") && IntAttribute(*cast, "to") == onnx::TensorProto::BOOL)
    return BeforeSameRows(graph, BeforeCast(graph, Input(*cast, 0)));
  if (graph.ElementType(flags) == onnx::TensorProto::BOOL) return flags;
  return Odd(reader, "does not take its padding from a cast to bool");
}

// A graph input [B, total].
Decline CheckPadding(const Graph& graph, const Node& reader, const std::string& input) {
  const auto shape = graph.Shape(input);
  if (!graph.IsInput(input) || !shape || shape->size() != 2)
    return Odd(reader, fmt::format("takes its padding from '{}'; needs a graph input of rank 2 there", input));
  const int type = graph.ElementType(input);
  if (type != onnx::TensorProto::INT64 && type != onnx::TensorProto::INT32 && type != onnx::TensorProto::BOOL)
    return Because(DeclineCode::kMaskInputType, "mask: '{}' has element type {}; needs int64, int32 or bool", input,
                   type);
  return {};
}

// Index `part` of GatherND: Unsqueeze(Expand(numbers, Shape(Max(b, kv))), [-1]).
std::optional<Numbers> IndexOf(const Graph& graph, const std::string& part) {
  const Node* last = Maker(graph, part);
  if (!graph.IsOnnx(last, "Unsqueeze")) return std::nullopt;
  const auto axes = KnownInts(graph, Input(*last, 1));
  if (axes != std::vector<int64_t>{-1} && axes != std::vector<int64_t>{kRank}) return std::nullopt;
  const Node* expand = Maker(graph, Input(*last, 0));
  if (!graph.IsOnnx(expand, "Expand")) return std::nullopt;
  return NumbersOf(graph, Input(*expand, 0));
}

// The value that index `part` expands, and the Max whose shape it takes.
struct Expanded {
  std::string value;
  const Node* max = nullptr;
};

Expanded ExpandedOf(const Graph& graph, const std::string& part) {
  const Node* expand = Maker(graph, Input(*Maker(graph, part), 0));
  const Node* shape = Maker(graph, Input(*expand, 1));
  const bool whole =
      graph.IsOnnx(shape, "Shape") && !Differs(*shape, "start") && FindAttribute(*shape, "end") == nullptr;
  return {graph.Origin(Input(*expand, 0)), whole ? Maker(graph, Input(*shape, 0)) : nullptr};
}

// Both are expanded to the shape of their maximum, [B, 1, 1, T].
bool AreExpandedAlike(const Graph& graph, const Node& indices) {
  const Expanded batch = ExpandedOf(graph, Input(indices, 0));
  const Expanded key = ExpandedOf(graph, Input(indices, 1));
  if (batch.max == nullptr || batch.max != key.max || !graph.IsOnnx(batch.max, "Max") || batch.max->input_size() != 2)
    return false;
  const std::string& left = graph.Origin(batch.max->input(0));
  const std::string& right = graph.Origin(batch.max->input(1));
  return (left == batch.value && right == key.value) || (left == key.value && right == batch.value);
}

// The same, folded: [B, 1, 1, T, 2] with (b, t) at each b and t.
bool IsFoldedIndex(const Graph& graph, const std::string& value, const Sum& batch, int64_t& keys) {
  const std::string& name = graph.Origin(value);
  const auto shape = graph.Shape(name);
  const auto numbers = graph.Ints(name);
  if (!shape || !numbers || shape->size() != kRank + 1 || !batch.Is((*shape)[0]) || (*shape)[4] != 2) return false;
  keys = (*shape)[3];
  if ((*shape)[1] != 1 || (*shape)[2] != 1) return false;
  for (size_t i = 0; i < numbers->size(); i += 2) {
    const auto at = static_cast<int64_t>(i / 2);
    if ((*numbers)[i] != at / keys || (*numbers)[i + 1] != at % keys) return false;
  }
  return true;
}

Matched<Found> ReadGather(const Graph& graph, const Node& node) {
  const auto wrong = [&] { return Odd(node, "does not take the first T columns of all rows of a mask"); };
  KVSHARE_ASSIGN_OR_RETURN(const std::string mask, BeforeFlags(graph, node, Input(node, 0)));
  KVSHARE_RETURN_IF_ERROR(CheckPadding(graph, node, mask));
  Found found;
  found.meaning.padding = true;
  found.meaning.key_mask = mask;
  if (graph.ConstantTensor(graph.Origin(Input(node, 1))) != nullptr) {
    int64_t columns = 0;
    if (Differs(node, "batch_dims") || !IsFoldedIndex(graph, Input(node, 1), SumOfExtent(graph, mask, 0), columns))
      return wrong();
    found.keys = Sum{columns};
    return found;
  }
  const Node* indices = Maker(graph, Input(node, 1));
  if (Differs(node, "batch_dims") || !graph.IsOnnx(indices, "Concat") || indices->input_size() != 2) return wrong();
  if (const int64_t axis = IntAttribute(*indices, "axis"); axis != -1 && axis != kRank) return wrong();
  const auto batch = IndexOf(graph, Input(*indices, 0));
  const auto keys = IndexOf(graph, Input(*indices, 1));
  if (!batch || !keys || batch->axis != kBatchAxis || keys->axis != kKeyAxis || !AreExpandedAlike(graph, *indices))
    return wrong();
  if (!batch->begin.Is(0) || !IsExcess(keys->begin) || batch->count != SumOfExtent(graph, mask, 0)) return wrong();
  found.keys = keys->count;
  found.excess = keys->begin;
  return found;
}

// Unsqueeze(flags, [1, 2]) of the whole mask, or of Slice(mask, 0, T, [1]).
Matched<Found> ReadWhole(const Graph& graph, const Node& node) {
  const auto wrong = [&] { return Odd(node, "does not make padding [B,1,1,T] of a mask"); };
  if (KnownInts(graph, Input(node, 1)) != std::vector<int64_t>{1, 2}) return wrong();
  Found found;
  KVSHARE_ASSIGN_OR_RETURN(found.meaning.key_mask, BeforeFlags(graph, node, Input(node, 0)));
  if (const Node* slice = Maker(graph, found.meaning.key_mask); graph.IsOnnx(slice, "Slice")) {
    found.keys = SumOf(graph, Input(*slice, 2));
    if (KnownInts(graph, Input(*slice, 1)) != std::vector<int64_t>{0} || !found.keys || !Input(*slice, 4).empty() ||
        KnownInts(graph, Input(*slice, 3)) != std::vector<int64_t>{1})
      return wrong();
    found.meaning.key_mask = graph.Origin(Input(*slice, 0));
  } else {
    found.keys = SumOfExtent(graph, found.meaning.key_mask, 1);
  }
  KVSHARE_RETURN_IF_ERROR(CheckPadding(graph, node, found.meaning.key_mask));
  found.meaning.padding = true;
  return found;
}

// A comparison, or more, that a tool has computed.
Matched<Found> ReadFolded(const Graph& graph, const std::string& value) {
  KVSHARE_ASSIGN_OR_RETURN(const ConstantMask mask, ReadConstantMask(graph, value));
  Found found{{}, Sum{mask.queries}, Sum{mask.keys}};
  found.meaning.causal = mask.causal;
  found.meaning.window = mask.window;
  return found;
}

// `read` counts the conditions of one mask.
Matched<Found> ReadCondition(const Graph& graph, const std::string& value, int& read);

Matched<Found> ReadAnd(const Graph& graph, const Node& node, int& read) {
  KVSHARE_ASSIGN_OR_RETURN(Found left, ReadCondition(graph, Input(node, 0), read));
  KVSHARE_ASSIGN_OR_RETURN(const Found right, ReadCondition(graph, Input(node, 1), read));
  const auto join = [&](std::optional<Sum>& one, const std::optional<Sum>& other, const char* what) -> Decline {
    if (one && other && *one != *other)
      return Odd(node, fmt::format("joins masks of {} and of {} {}", TextOf(*one), TextOf(*other), what));
    if (!one) one = other;
    return {};
  };
  KVSHARE_RETURN_IF_ERROR(join(left.queries, right.queries, "queries"));
  KVSHARE_RETURN_IF_ERROR(join(left.keys, right.keys, "keys"));
  if (left.excess.Is(0)) left.excess = right.excess;
  if (!right.excess.Is(0) && right.excess != left.excess)
    return Odd(node, fmt::format("joins masks with {} and with {} columns too many", TextOf(left.excess),
                                 TextOf(right.excess)));
  if (left.meaning.padding && right.meaning.padding && left.meaning.key_mask != right.meaning.key_mask)
    return Odd(node, fmt::format("joins padding of '{}' and of '{}'", left.meaning.key_mask, right.meaning.key_mask));
  if (left.meaning.window >= 0 && right.meaning.window >= 0) return Odd(node, "joins two windows");
  left.meaning.window = std::max(left.meaning.window, right.meaning.window);
  left.meaning.causal = left.meaning.causal || right.meaning.causal;
  left.meaning.padding = left.meaning.padding || right.meaning.padding;
  if (left.meaning.key_mask.empty()) left.meaning.key_mask = right.meaning.key_mask;
  return left;
}

Matched<Found> ReadCondition(const Graph& graph, const std::string& value, int& read) {
  const std::string& origin = graph.Origin(value);
  if (graph.ElementType(origin) == onnx::TensorProto::BOOL && graph.Ints(origin) == std::vector<int64_t>{1})
    return Found{};
  if (IsConstantMask(graph, origin)) {
    if (graph.ElementType(origin) == onnx::TensorProto::BOOL) return ReadFolded(graph, origin);
    return Because(DeclineCode::kMaskUnknown, "mask: constant '{}' is one of its conditions, and not bool", origin);
  }
  const Node* node = graph.Producer(origin);
  if (node == nullptr) return Because(DeclineCode::kMaskUnknown, "mask: the meaning of '{}' is not known", origin);
  if (++read > kMostConditions) return Odd(*node, fmt::format("is one of more than {} conditions", kMostConditions));
  if (graph.IsOnnx(node, "And")) return ReadAnd(graph, *node, read);
  if (graph.IsOnnx(node, "GatherND")) return ReadGather(graph, *node);
  if (graph.IsOnnx(node, "Unsqueeze")) return ReadWhole(graph, *node);
  if (std::ranges::any_of(kComparisons, [&](const Comparison& each) { return graph.IsOnnx(node, each.op); }))
    return ReadComparison(graph, *node);
  return Odd(*node, "is none of And, a comparison of columns, GatherND and padding as exporters write them");
}

// Expand(condition, [B, 1, S, T]): changes no element.
Decline CheckExpand(const Graph& graph, const Node& expand, const Found& found) {
  const auto shape = SumsOf(graph, Input(expand, 1));
  const auto is = [&](int64_t axis, const std::optional<Sum>& extent) {
    const Sum& to = (*shape)[static_cast<size_t>(axis)];
    return to.Is(1) || (extent && to == *extent);
  };
  const bool fits = shape && shape->size() == kRank && is(1, std::nullopt) && is(kQueryAxis, found.queries) &&
                    is(kKeyAxis, found.keys) &&
                    (!found.meaning.padding || is(kBatchAxis, SumOfExtent(graph, found.meaning.key_mask, 0)));
  return fits ? Decline() : Odd(expand, "does not expand to [B, 1, S, T]");
}

}  // namespace

Matched<MaskMeaning> ReadColumnMask(const Graph& graph, const std::string& mask) {
  const Node* node = Maker(graph, mask);
  const Node* expand = graph.IsOnnx(node, "Expand") ? node : nullptr;
  const std::string& condition = expand != nullptr ? Input(*expand, 0) : mask;
  int read = 0;
  KVSHARE_ASSIGN_OR_RETURN(
      Found found, IsConstantMask(graph, mask) ? ReadFolded(graph, mask) : ReadCondition(graph, condition, read));
  const bool only_padding = found.meaning.padding && !found.queries;
  if (!found.keys || (!only_padding && !found.meaning.causal))
    return Because(DeclineCode::kNotCausal, "mask: '{}' compares columns and is not causal", mask);
  if (expand != nullptr) KVSHARE_RETURN_IF_ERROR(CheckExpand(graph, *expand, found));
  found.meaning.rank = kRank;
  found.meaning.columns = Columns{std::move(found.queries), *std::move(found.keys), std::move(found.excess)};
  return std::move(found.meaning);
}

}  // namespace kvshare::graph
