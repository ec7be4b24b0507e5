// A model with caches of codes, once more in floats: what its attention would give if it read the same codes exactly.
//
//  model   out, present = GroupQueryAttention(q, k, v, past, ..., scales), present i8     borrowers read present
//  twin    _, present = GroupQueryAttention(q, k, v, past, ...), present f32
//          out = GroupQueryAttention(q, external: read), read f32 a graph input           borrowers read it, too
//  unrounded   out, present = GroupQueryAttention(q, k, v, past, ...), present f32        borrowers read present
//
// Who runs both gives `read` what the model's present means: then the logits agree but for the order of sums, and the
// twin's present holds the very rows that the model rounded. Unrounded, the model tells what rounding has no part in.
#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "graph/layers.h"
#include "graph/match/caches.h"
#include "graph/model_file.h"
#include "graph/validate.h"
#include "kvshare/rewrite.h"

namespace kvshare::graph {
namespace {

constexpr int kKScale = 12;  // v_scale is next
constexpr int kPast = 3;     // of keys; that of values is next
constexpr std::array<const char*, 3> kOfCodes = {"k_quant_type", "v_quant_type", "kv_cache_bit_width"};

bool HoldsCodes(const Graph& graph, const std::string& cache) {
  const int type = graph.ElementType(cache);
  return type == onnx::TensorProto::INT8 || type == onnx::TensorProto::UINT8 || type == onnx::TensorProto::FLOAT8E4M3FN;
}

// A layer of kvshare's in the main graph, whose codes its borrowers read by name.
Status Check(const Graph& graph, const std::vector<Layer>& layers, const Layer& own) {
  const auto refuse = [&](const std::string& why) {
    return Status::Refused(fmt::format("{}: {}", Describe(*own.node), why));
  };
  if (own.graph != &graph) return refuse(fmt::format("lies in {}", own.graph->place()));
  if (const Decline odd = CheckOwnCache(own, kAllButWidth); !odd.ok()) return refuse(odd.message());
  if (Input(*own.node, 1).empty() || Input(*own.node, 2).empty())
    return refuse("has query, key and value in one input; needs three");
  for (const int input : {9, 10, 11, 14, 15, 16})
    if (!Input(*own.node, input).empty()) return refuse(fmt::format("has an input {}", input));
  for (const Layer* borrower : BorrowersOf(layers, own))
    if (!BorrowsByName(*borrower) || borrower->graph != &graph)
      return refuse(fmt::format("layer {} borrows its cache in another way than by external_key", borrower->index));
  for (const int side : {0, 1}) {
    const std::string& scale = Input(*own.node, kKScale + side);
    if (!scale.empty() && !graph.Floats(scale)) return refuse(fmt::format("'{}' is no constant", scale));
    if (Output(*own.node, 1 + side).empty()) return refuse("has no presents");
  }
  return own.head_size > 0 && own.kv_heads > 0 ? Status() : refuse("its heads are not known");
}

class Maker {
 public:
  Maker(Graph& graph, const std::vector<Layer>& layers) : graph_(graph), layers_(layers) {}

  // The layer's cache in floats, for all that read it.
  void Widen(const Layer& own) {
    for (const int side : {0, 1}) Widen(own, side);
    DropCodes(*own.node);
    for (const Layer* borrower : BorrowersOf(layers_, own)) DropCodes(*borrower->node);
  }

  // Lets all readers of a widened cache read it from a new graph input.
  void Give(const Layer& own) {
    std::array<std::string, 2> read;
    for (const int side : {0, 1}) read[static_cast<size_t>(side)] = NewInput(own, side);
    for (const Layer* borrower : BorrowersOf(layers_, own))
      for (const int side : {0, 1})
        graph_.SetInput(*borrower->node, kExternalKey + side, read[static_cast<size_t>(side)]);
    Read(*own.node, read);
  }

  // The graph's inputs `read`, which the model lacks.
  void Declare(onnx::ModelProto& model) const {
    for (const auto& cache : caches) {
      auto& input = *model.mutable_graph()->add_input();
      input.set_name(cache.read);
      auto& tensor = *input.mutable_type()->mutable_tensor_type();
      tensor.set_elem_type(onnx::TensorProto::FLOAT);
      for (const char* axis : {"_batch", "", "_rows", ""}) {
        auto& extent = *tensor.mutable_shape()->add_dim();
        if (*axis != '\0') extent.set_dim_param(cache.read + axis);
      }
      tensor.mutable_shape()->mutable_dim(1)->set_dim_value(cache.kv_heads);
      tensor.mutable_shape()->mutable_dim(3)->set_dim_value(cache.head_size);
    }
  }

  std::vector<TwinCache> caches;

 private:
  void Widen(const Layer& own, int side) {
    const Node& node = *own.node;
    const std::string& past = Input(node, kPast + side);
    const std::string& present = Output(node, 1 + side);
    TwinCache cache{past, present, "", {1.0F}, own.kv_heads, own.head_size};
    if (const auto scales = graph_.Floats(Input(node, kKScale + side)))
      cache.scales.assign(scales->begin(), scales->end());
    for (const std::string& value : {past, present}) {
      graph_.SetElementType(value, onnx::TensorProto::FLOAT);
      graph_.SetExtent(value, -1, own.head_size);
    }
    caches.push_back(std::move(cache));
  }

  // The twin's input for what the cache of keys or values means.
  std::string NewInput(const Layer& own, int side) {
    const std::string& present = Output(*own.node, 1 + side);
    const auto cache = std::ranges::find(caches, present, &TwinCache::present);
    return cache->read = graph_.FreshName(present + "_read");
  }

  void DropCodes(const Node& node) {
    std::vector<onnx::AttributeProto> kept;
    for (const auto& attribute : node.attribute())
      if (std::ranges::find(kOfCodes, attribute.name()) == kOfCodes.end()) kept.push_back(attribute);
    graph_.ClearAttributes(node);
    for (const auto& attribute : kept) graph_.SetAttribute(node, attribute);
    for (const int side : {0, 1})
      if (!Input(node, kKScale + side).empty()) graph_.SetInput(node, kKScale + side, "");
  }

  // The own layer's output by what is read.
  void Read(const Node& node, const std::array<std::string, 2>& read) {
    std::vector<std::string> outputs(node.output().begin(), node.output().end());
    const std::string out = std::exchange(outputs[0], graph_.FreshName(outputs[0] + "_unread"));
    graph_.SetOutputs(node, outputs);
    std::vector<std::string> inputs(kExternalValue + 1);
    for (const int same : {0, 5, 6, 7, 8}) inputs[static_cast<size_t>(same)] = Input(node, same);
    inputs[kExternalKey] = read[0];
    inputs[kExternalValue] = read[1];
    const Node& reader = graph_.InsertBefore(node, node.op_type(), inputs, {out});
    graph_.SetOp(reader, kKvshare, node.op_type());
    for (const auto& attribute : node.attribute()) graph_.SetAttribute(reader, attribute);
  }

  Graph& graph_;
  const std::vector<Layer>& layers_;
};

}  // namespace
}  // namespace kvshare::graph

namespace kvshare {

using namespace graph;  // this file is one of graph's public faces

Result<std::optional<FloatTwin>> MakeFloatTwin(const std::string& model_path) {
  KVSHARE_ASSIGN_OR_RETURN(ModelFile file, LoadModel(model_path));
  KVSHARE_ASSIGN_OR_RETURN(Graph graph, Graph::Make(std::move(file.model), file.folder));
  const std::vector<Layer> layers = FindLayers(graph);
  std::vector<const Layer*> owners;
  for (const Layer& layer : layers) {
    if (!layer.IsGqa() || layer.IsShared() || !HoldsCodes(*layer.graph, Input(*layer.node, kPast))) continue;
    KVSHARE_RETURN_IF_ERROR(Check(graph, layers, layer));
    owners.push_back(&layer);
  }
  if (owners.empty()) return std::optional<FloatTwin>();
  Maker maker(graph, layers);
  for (const Layer* own : owners) maker.Widen(*own);
  FloatTwin twin;
  const bool fits = graph.model().SerializeToString(&twin.unrounded);
  for (const Layer* own : owners) maker.Give(*own);
  onnx::ModelProto model = std::move(graph).Release();
  maker.Declare(model);
  twin.caches = std::move(maker.caches);
  if (!fits || !model.SerializeToString(&twin.model))
    return Status::Refused("the model has more than 2 GB of weights in its file; needs them in another file");
  return std::optional(std::move(twin));
}

}  // namespace kvshare
