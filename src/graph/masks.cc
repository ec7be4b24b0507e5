#include "graph/masks.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_set>

namespace kvshare::graph {
namespace {

// Anything at or below hides a key even in f16.
constexpr double kHides = -65504.0;
// Exporters join three or four; a graph may share and nest them so that reading all would never end.
constexpr int kMostConditions = 64;

Status Odd(const Node& node, const std::string& fact) {
  return Status::Refused(fmt::format("mask: {} {}", Describe(node), fact));
}

bool CastsTo(const Graph& graph, const Node* node, std::initializer_list<int64_t> types) {
  return graph.IsOnnx(node, "Cast") &&
         std::find(types.begin(), types.end(), IntAttribute(*node, "to", 0)) != types.end();
}

// Axes of a rank-`rank` value, negative ones counted from its end.
bool HasAxis(const Graph& graph, const Node& node, int input, int64_t axis, int64_t rank) {
  const auto axes = graph.Ints(Input(node, input));
  return axes && axes->size() == 1 && (axes->front() == axis || axes->front() == axis - rank);
}

// The graph input [B, T] behind `value`, a cast to another integer type allowed.
Result<std::string> MaskInput(const Graph& graph, const std::string& value) {
  if (graph.IsInput(value)) return value;
  const Node* node = graph.Producer(value);
  if (CastsTo(graph, node, {onnx::TensorProto::INT32, onnx::TensorProto::INT64}) && graph.IsInput(Input(*node, 0)))
    return Input(*node, 0);
  if (node != nullptr) return Odd(*node, "makes the padding; needs a graph input there");
  return Status::Refused(fmt::format("mask: '{}' is a constant; needs a graph input there", value));
}

// c = CumSum(mask, 1): gives mask.
Result<std::string> PositionsOf(const Graph& graph, const std::string& value) {
  const Node* node = graph.Producer(value);
  if (node == nullptr)
    return Status::Refused(fmt::format("mask: positions come from '{}'; need CumSum of a mask", value));
  if (!graph.IsOnnx(node, "CumSum")) return Odd(*node, "gives the positions; needs CumSum of a mask");
  const auto axis = graph.Ints(Input(*node, 1));
  if (!axis || axis->size() != 1 || (axis->front() != 1 && axis->front() != -1))
    return Odd(*node, "does not run along axis 1");
  if (IntAttribute(*node, "exclusive", 0) != 0 || IntAttribute(*node, "reverse", 0) != 0)
    return Odd(*node, "is exclusive or reversed");
  return MaskInput(graph, Input(*node, 0));
}

struct QueryPositions {
  std::string counts;  // c
  std::string mask;
  std::string query;
};

// Slice(c, T-S, T, axes [1]), with T of c's own mask.
Result<QueryPositions> ReadSlice(const Graph& graph, const Node& slice) {
  KVSHARE_ASSIGN_OR_RETURN(const std::string mask, PositionsOf(graph, Input(slice, 0)));
  const Status wrong = Odd(slice, "does not take the last S columns of the positions");
  if (!HasAxis(graph, slice, 3, 1, 2)) return wrong;
  if (!Input(slice, 4).empty() && graph.Ints(Input(slice, 4)) != std::vector<int64_t>{1}) return wrong;
  const std::string* total = ShapeExtentOf(graph, Input(slice, 2), 1);
  const Node* start = graph.Producer(Input(slice, 1));
  if (total == nullptr || *total != mask || !graph.IsOnnx(start, "Sub")) return wrong;
  const std::string* minuend = ShapeExtentOf(graph, Input(*start, 0), 1);
  const std::string* query = ShapeExtentOf(graph, Input(*start, 1), 1);
  if (minuend == nullptr || *minuend != mask || query == nullptr || *query == mask) return wrong;
  return QueryPositions{Input(slice, 0), mask, *query};
}

// The pair (q, kv) of a comparison or a difference, in that order.
Result<QueryPositions> ReadPositionPair(const Graph& graph, const Node& node, const std::string& q,
                                        const std::string& kv) {
  const Node* query = graph.Producer(q);
  const Node* key = graph.Producer(kv);
  if (!graph.IsOnnx(query, "Unsqueeze") || !graph.IsOnnx(key, "Unsqueeze"))
    return Odd(node, "does not compare positions of queries with positions of keys");
  const Node* slice = graph.Producer(Input(*query, 0));
  if (!graph.IsOnnx(slice, "Slice") || !HasAxis(graph, *query, 1, 2, 3) || !HasAxis(graph, *key, 1, 1, 3))
    return Odd(node, "does not compare positions of queries [B,S,1] with positions of keys [B,1,T]");
  KVSHARE_ASSIGN_OR_RETURN(const QueryPositions positions, ReadSlice(graph, *slice));
  if (Input(*key, 0) != positions.counts) return Odd(node, "compares positions that two different nodes count");
  return positions;
}

// `read` counts the conditions of one mask.
Result<MaskMeaning> ReadCondition(const Graph& graph, const std::string& value, int& read);

Result<MaskMeaning> ReadAnd(const Graph& graph, const Node& node, int& read) {
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
  return left;
}

Result<MaskMeaning> ReadCausal(const Graph& graph, const Node& node) {
  KVSHARE_ASSIGN_OR_RETURN(const QueryPositions at, ReadPositionPair(graph, node, Input(node, 0), Input(node, 1)));
  MaskMeaning meaning;
  meaning.causal = true;
  meaning.key_mask = at.mask;
  meaning.query = at.query;
  return meaning;
}

Result<MaskMeaning> ReadWindow(const Graph& graph, const Node& node) {
  const Node* difference = graph.Producer(Input(node, 0));
  if (!graph.IsOnnx(difference, "Sub")) return Odd(node, "does not compare a difference of positions");
  KVSHARE_ASSIGN_OR_RETURN(const QueryPositions at,
                           ReadPositionPair(graph, *difference, Input(*difference, 0), Input(*difference, 1)));
  const auto window = graph.Ints(Input(node, 1));
  if (!window || window->size() != 1 || window->front() <= 0)
    return Odd(node, "does not compare with a constant window of at least 1");
  MaskMeaning meaning;
  meaning.window = window->front();
  meaning.key_mask = at.mask;
  meaning.query = at.query;
  return meaning;
}

Result<MaskMeaning> Padding(const Graph& graph, const std::string& mask) {
  MaskMeaning meaning;
  KVSHARE_ASSIGN_OR_RETURN(meaning.key_mask, MaskInput(graph, mask));
  meaning.padding = true;
  return meaning;
}

// Expand(condition, [B, S, T]): changes no element.
Result<MaskMeaning> ReadExpand(const Graph& graph, const Node& node, int& read) {
  KVSHARE_ASSIGN_OR_RETURN(MaskMeaning meaning, ReadCondition(graph, Input(node, 0), read));
  const Node* shape = graph.Producer(Input(node, 1));
  const std::string* query = nullptr;
  if (graph.IsOnnx(shape, "Concat") && shape->input_size() == 3 && IntAttribute(*shape, "axis", 1) == 0) {
    const std::string* total = ShapeExtentOf(graph, shape->input(2), 1);
    if (ShapeExtentOf(graph, shape->input(0), 0) != nullptr && total != nullptr && *total == meaning.key_mask)
      query = ShapeExtentOf(graph, shape->input(1), 1);
  }
  if (query == nullptr || (!meaning.query.empty() && meaning.query != *query))
    return Odd(node, "does not expand to [B, S, T]");
  meaning.query = *query;
  return meaning;
}

// A bool value of rank 3.
Result<MaskMeaning> ReadCondition(const Graph& graph, const std::string& value, int& read) {
  const Node* node = graph.Producer(value);
  if (node == nullptr && graph.ConstantTensor(value) != nullptr)
    return Status::Refused(fmt::format("mask: '{}' is a constant among conditions; its meaning is not known", value));
  if (node == nullptr)
    return Status::Refused(fmt::format("mask: '{}' is given from outside; its meaning is not known", value));
  if (++read > kMostConditions) return Odd(*node, fmt::format("is one of more than {} conditions", kMostConditions));
  if (graph.IsOnnx(node, "And")) return ReadAnd(graph, *node, read);
  if (graph.IsOnnx(node, "GreaterOrEqual")) return ReadCausal(graph, *node);
  if (graph.IsOnnx(node, "Less")) return ReadWindow(graph, *node);
  if (graph.IsOnnx(node, "Expand")) return ReadExpand(graph, *node, read);
  if (CastsTo(graph, node, {onnx::TensorProto::BOOL})) {
    const Node* wide = graph.Producer(Input(*node, 0));
    if (graph.IsOnnx(wide, "Unsqueeze") && HasAxis(graph, *wide, 1, 1, 3)) return Padding(graph, Input(*wide, 0));
  }
  if (graph.IsOnnx(node, "Unsqueeze") && HasAxis(graph, *node, 1, 1, 3)) {
    const Node* flag = graph.Producer(Input(*node, 0));
    if (CastsTo(graph, flag, {onnx::TensorProto::BOOL})) return Padding(graph, Input(*flag, 0));
  }
  return Odd(*node, "is not one of And, GreaterOrEqual, Less, Expand and padding as exporters write them");
}

Result<MaskMeaning> ReadWhere(const Graph& graph, const Node& node) {
  const auto keep = graph.Scalar(Input(node, 1));
  const auto hide = graph.Scalar(Input(node, 2));
  if (!keep || *keep != 0.0 || !hide || !(*hide <= kHides))
    return Odd(node, fmt::format("adds {} to what it keeps and {} to the rest; needs 0 and at most {}",
                                 keep ? fmt::format("{}", *keep) : "a computed value",
                                 hide ? fmt::format("{}", *hide) : "a computed value", kHides));
  int read = 0;
  return ReadCondition(graph, Input(node, 0), read);
}

// A float mask, or a bool one, of rank 3.
Result<MaskMeaning> ReadRank3(const Graph& graph, const std::string& value) {
  const Node* node = graph.Producer(value);
  if (CastsTo(graph, node,
              {onnx::TensorProto::FLOAT, onnx::TensorProto::FLOAT16, onnx::TensorProto::BFLOAT16,
               onnx::TensorProto::DOUBLE}))
    node = graph.Producer(Input(*node, 0));
  if (graph.IsOnnx(node, "Where")) return ReadWhere(graph, *node);
  int read = 0;
  return ReadCondition(graph, value, read);
}

}  // namespace

const std::string* ShapeExtentOf(const Graph& graph, const std::string& value, int64_t start) {
  const Node* node = graph.Producer(value);
  if (!graph.IsOnnx(node, "Shape") || node->input_size() != 1 || IntAttribute(*node, "start", 0) != start ||
      IntAttribute(*node, "end", -1) != start + 1)
    return nullptr;
  return &node->input(0);
}

Result<MaskMeaning> ReadMask(const Graph& graph, const std::string& mask) {
  const Node* node = graph.Producer(mask);
  if (graph.IsOnnx(node, "Unsqueeze") && HasAxis(graph, *node, 1, 1, 4)) {
    const Node* inner = graph.Producer(Input(*node, 0));
    // Unsqueeze(Cast(mask, bool), [1]) is padding of rank 3, not a mask of rank 4.
    if (inner != nullptr && !(CastsTo(graph, inner, {onnx::TensorProto::BOOL}) && graph.IsInput(Input(*inner, 0)))) {
      KVSHARE_ASSIGN_OR_RETURN(MaskMeaning meaning, ReadRank3(graph, Input(*node, 0)));
      meaning.rank = 4;
      return meaning;
    }
  }
  return ReadRank3(graph, mask);
}

std::vector<Node*> MaskNodes(const Graph& graph, const std::string& mask) {
  std::vector<Node*> found;
  std::unordered_set<const Node*> seen;
  std::vector<std::string> open = {mask};
  while (!open.empty()) {
    const std::string value = std::move(open.back());
    open.pop_back();
    Node* node = graph.Producer(value);
    if (node == nullptr || node->op_type() == "Shape" || node->op_type() == "Constant") continue;
    if (!seen.insert(node).second) continue;
    found.push_back(node);
    for (auto& name : ReadNames(*node)) open.push_back(std::move(name));
  }
  return found;
}

}  // namespace kvshare::graph
