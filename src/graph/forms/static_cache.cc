// Static caches: a graph input of fixed size, into which the graph writes new keys at positions that the caller gives.
//
//   mobius        TensorScatter(cache [B, C, Hkv * D], added, write_indices) {axis=1}
//   onnx25        the same of Pad(cache [B, Hkv, P, D]), which makes room for what is new, by kvshare's rewrite
//   StaticCache   Transpose(ScatterND(Transpose(cache [B, Hkv, C, D]), indices, Transpose(added))), by PyTorch's
//   exporter
#include "graph/forms/facts.h"

namespace kvshare::graph {
namespace {

const std::string& BeforeTranspose(const Graph& graph, const std::string& value) {
  const Node* node = graph.Producer(graph.Origin(value));
  return graph.Origin(graph.IsOnnx(node, "Transpose") ? Input(*node, 0) : value);
}

}  // namespace

StaticCache StaticCacheOf(const Graph& graph, const std::string& value) {
  const Node* writer = graph.Producer(BeforeTranspose(graph, value));
  if (!graph.IsOnnx(writer, "TensorScatter") && !graph.IsOnnx(writer, "ScatterND")) return {};
  if (graph.OwnerOf(writer->output(0)) != &graph) return {};  // no layer of this graph writes it
  const Node* pad = graph.Producer(Input(*writer, 0));
  const bool grows = graph.IsOnnx(pad, "Pad");
  const std::string& cache = grows ? graph.Origin(Input(*pad, 0)) : BeforeTranspose(graph, Input(*writer, 0));
  const auto shape = graph.Shape(cache);
  if (!graph.IsInput(cache) || !shape || (shape->size() != 3 && shape->size() != 4)) return {};
  // [B, Hkv, C, D] or [B, C, Hkv * D].
  return {writer, cache, grows ? 0 : ExtentOrZero((*shape)[shape->size() - 2]), grows};
}

}  // namespace kvshare::graph
