// Behind the last layer that makes keys only the last token of each sequence is computed: the layers there borrow, so
// that nothing but logits depends on the others.
//
//  before   hidden [B, S, D], per-layer inputs, positions -> shared layers -> logits [B, S, V]
//  after    GatherND(hidden, last) [B, 1, D], ...         -> shared layers -> logits [B, 1, V]
//
// last is min(seqlens_k, S - 1): on a first prompt a sequence's tokens begin at row 0, later ones end at row S - 1.
// Where layers count no lengths, it is the last of the step's columns that the mask keeps.
#include <algorithm>
#include <limits>
#include <tuple>
#include <utility>

#include "graph/match/last_token.h"
#include "graph/rules/rule.h"

namespace kvshare::graph {
namespace {

// New nodes, put before all others: Graph::Reorder() finds their place.
class Maker {
 public:
  Maker(Graph& graph, std::string base) : graph_(graph), where_(*graph.nodes().front()), base_(std::move(base)) {}

  const Node& Make(const char* op, const std::vector<std::string>& inputs, const char* what) {
    return graph_.InsertBefore(where_, op, inputs, {graph_.FreshName(base_ + what)});
  }

  std::string Ints(const std::vector<int64_t>& values, const char* what) {
    std::string name = graph_.FreshName(base_ + what);
    graph_.AddInts(name, values);
    return name;
  }

  std::string Cast(const std::string& value, int type, const char* what) {
    const Node& node = Make("Cast", {value}, what);
    graph_.SetInt(node, "to", type);
    return node.output(0);
  }

  std::string Transpose(const std::string& value, const std::vector<int64_t>& perm, const char* what) {
    const Node& node = Make("Transpose", {value}, what);
    onnx::AttributeProto attribute;
    attribute.set_name("perm");
    attribute.set_type(onnx::AttributeProto::INTS);
    for (const int64_t axis : perm) attribute.add_ints(axis);
    graph_.SetAttribute(node, attribute);
    return node.output(0);
  }

 private:
  Graph& graph_;
  const Node& where_;
  std::string base_;
};

// The columns [begin, end) of the mask that are this step's tokens.
std::pair<std::string, std::string> ColumnsOf(Maker& maker, const LastTokenPlan& plan, const std::string& tokens) {
  if (plan.keys.empty())
    return {maker.Make("Neg", {tokens}, "_begin").output(0), maker.Ints({std::numeric_limits<int64_t>::max()}, "_end")};
  const std::string extents = maker.Make("Shape", {plan.keys}, "_rows").output(0);
  const std::string end = maker.Make("Gather", {extents, maker.Ints({-2}, "_axis")}, "_end").output(0);
  return {maker.Make("Sub", {end, tokens}, "_begin").output(0), end};
}

// [B, 1, 1]: the row of each sequence's last token among this step's.
std::string MakeLast(Graph& graph, const LastTokenPlan& plan) {
  Maker maker(graph, plan.logits + "_last");
  const std::string extents = maker.Make("Shape", {plan.query}, "_extents").output(0);
  const std::string tokens = maker.Make("Gather", {extents, maker.Ints({-2}, "_axis")}, "_tokens").output(0);
  std::string row;
  if (!plan.seqlens.empty()) {
    const std::string newest = maker.Make("Sub", {tokens, maker.Ints({1}, "_one")}, "_newest").output(0);
    const std::string seqlens = maker.Cast(plan.seqlens, onnx::TensorProto::INT64, "_seqlens");
    row = maker.Make("Min", {seqlens, newest}, "_row").output(0);
  } else {
    const auto [begin, end] = ColumnsOf(maker, plan, tokens);
    const std::string columns =
        maker.Make("Slice", {plan.mask, begin, end, maker.Ints({1}, "_one")}, "_columns").output(0);
    const Node& latest = maker.Make("ArgMax", {maker.Cast(columns, onnx::TensorProto::INT32, "_kept")}, "_row");
    graph.SetInt(latest, "axis", 1);
    graph.SetInt(latest, "select_last_index", 1);
    row = latest.output(0);
  }
  return maker.Make("Reshape", {row, maker.Ints({-1, 1, 1}, "_shape")}, "").output(0);
}

// `value` at the last tokens. GatherND takes them along the second axis, behind the sequences.
std::string TakeLast(Graph& graph, const std::string& value, const TokenCut& cut, const std::string& last) {
  Maker maker(graph, value + "_last");
  std::vector<int64_t> order = {cut.batch, cut.rank + cut.axis};
  for (int64_t axis = 0; axis < cut.rank; ++axis)
    if (axis != order[0] && axis != order[1]) order.push_back(axis);
  std::vector<int64_t> back(order.size());
  for (size_t i = 0; i < order.size(); ++i) back[static_cast<size_t>(order[i])] = static_cast<int64_t>(i);
  const bool is_second = std::ranges::is_sorted(order);
  const std::string rows = is_second ? value : maker.Transpose(value, order, "_rows");
  const Node& taken = maker.Make("GatherND", {rows, last}, "_token");
  graph.SetInt(taken, "batch_dims", 1);
  return is_second ? taken.output(0) : maker.Transpose(taken.output(0), back, "");
}

void CutTokens(Graph& graph, const LastTokenPlan& plan) {
  const std::string last = MakeLast(graph, plan);
  std::map<std::pair<std::string, int64_t>, std::string> taken;
  for (const TokenCut& cut : plan.cuts) {
    const std::string value = Input(*cut.node, cut.input);
    std::string& of_last = taken[{value, cut.axis}];
    if (of_last.empty()) of_last = TakeLast(graph, value, cut, last);
    graph.SetInput(*cut.node, cut.input, of_last);
  }
}

}  // namespace

void RunFastPrefill(Rewriting& rewriting) {
  if (rewriting.layers.empty()) return;
  Graph& graph = rewriting.graph;
  const auto plan = MatchLastToken(graph, rewriting.layers);
  if (!plan.ok()) {
    rewriting.Record(kFastPrefillRule, *rewriting.layers.back().node, Outcome::Declined(plan.status()));
    return;
  }
  if (plan->cuts.empty()) return;
  CutTokens(graph, *plan);
  for (const auto& [node, shape] : plan->shapes) {
    rewriting.released.push_back({&graph, Input(*node, 1)});
    const std::string any = graph.FreshName(node->output(0) + "_shape");
    graph.AddInts(any, shape);
    graph.SetInput(*node, 1, any);
    if (Differs(*node, "allowzero")) graph.SetInt(*node, "allowzero", 0);  // a 0 keeps an extent
  }
  for (const Node* node : plan->triangles) graph.SetInt(*node, "is_causal", 0);
  // One token would not fit what else they read.
  for (auto at = plan->unneeded.rbegin(); at != plan->unneeded.rend(); ++at) graph.Remove(**at);
  for (const auto& [value, axis] : plan->narrowed) graph.SetExtent(value, axis, 1);
  // There is no cycle: the graph was in order, and the added nodes read values that it had.
  if (const Status sorted = graph.Reorder(); !sorted.ok()) rewriting.Note(sorted.message());
  rewriting.Record(kFastPrefillRule, *plan->first,
                   Outcome::Applied(fmt::format(
                       "changed contract: '{}' is [B, 1, V], the logits of each sequence's last token; layers from {} "
                       "on compute no other",
                       plan->logits, Describe(*plan->first))));
}

}  // namespace kvshare::graph
