#include "graph/rules/fold_heads.h"

namespace kvshare::graph {
namespace {

const std::vector<int64_t> kSwap = {0, 2, 1, 3};

bool IsSwap(const Graph& graph, const Node* node) {
  return graph.IsOnnx(node, "Transpose") && IntsAttribute(*node, "perm") == kSwap;
}

void SetPerm(Graph& graph, const Node& node) {
  onnx::AttributeProto perm;
  perm.set_name("perm");
  perm.set_type(onnx::AttributeProto::INTS);
  for (const int64_t axis : kSwap) perm.add_ints(axis);
  graph.SetAttribute(node, perm);
}

std::string Shape(Graph& graph, const std::string& base, const std::vector<int64_t>& extents) {
  std::string name = graph.FreshName(base);
  graph.AddInts(name, extents);
  return name;
}

}  // namespace

std::string FoldHeads(Rewriting& rewriting, const Layer& layer, const std::string& bnsh, int64_t heads) {
  Graph& graph = rewriting.GraphOf(layer);
  const Node* maker = graph.Producer(graph.Origin(bnsh));
  std::string swapped;
  if (IsSwap(graph, maker)) {
    swapped = maker->input(0);
    rewriting.released.push_back({&graph, bnsh, false});
  } else {
    swapped = graph.FreshName(bnsh + "_bsnh");
    SetPerm(graph, graph.InsertBefore(*layer.node, "Transpose", {bnsh}, {swapped}));
  }
  const std::string shape = Shape(graph, bnsh + "_fold", {0, 0, heads * layer.head_size});
  return graph.InsertBefore(*layer.node, "Reshape", {swapped, shape}, {graph.FreshName(bnsh + "_folded")}).output(0);
}

void UnfoldOutput(Rewriting& rewriting, const Layer& layer) {
  Graph& graph = rewriting.GraphOf(layer);
  const Node& node = *layer.node;
  const std::string old = node.output(0);
  const std::string folded = graph.FreshName(old + "_folded");
  const std::string shape = Shape(graph, old + "_unfold", {0, 0, layer.query_heads, layer.head_size});
  std::vector<std::string> outputs(node.output().begin(), node.output().end());
  outputs[0] = folded;
  graph.SetOutputs(node, outputs);
  const Node& unfold = graph.InsertBefore(node, "Reshape", {folded, shape}, {graph.FreshName(old + "_bsnh")});
  const Node& swap = graph.InsertBefore(node, "Transpose", {unfold.output(0)}, {old});
  SetPerm(graph, swap);
  // Those that would swap positions and heads back need not.
  for (const Node* reader : std::vector<const Node*>(graph.Consumers(old))) {
    if (!IsSwap(graph, reader)) continue;
    graph.ClearAttributes(*reader);
    graph.SetOp(*reader, "", "Reshape");
    graph.SetInputs(*reader, {folded, shape});
  }
  if (graph.IsRead(old)) return;
  graph.Remove(swap);
  graph.Remove(unfold);
}

bool HasFourAxes(const Layer& layer) {
  const auto query = layer.graph->Shape(Input(*layer.node, 0));
  return query ? query->size() == 4 : !layer.IsGqa() && FindAttribute(*layer.node, "q_num_heads") == nullptr;
}

Decline CheckFold(const Layer& layer) {
  if (!HasFourAxes(layer) || layer.head_size > 0) return {};
  return Because(DeclineCode::kHeadSize, "its head size is not known, which a query of rank 3 needs");
}

}  // namespace kvshare::graph
