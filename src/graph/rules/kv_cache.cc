// Caches of own layers hold 16-bit floats or codes, and so does what their borrowers read.
//
//  before   past f32 -> own layer -> present f32 -> borrowers
//  after    past i8 -> own layer {k_quant_type=PER_CHANNEL, ...}(..., k_scale, v_scale) -> present i8 -> borrowers {the
//  same}
#include "graph/rules/kv_cache.h"

#include <algorithm>
#include <array>

#include "graph/match/caches.h"
#include "graph/rules/rule.h"

namespace kvshare::graph {
namespace {

constexpr int kKScale = 12;  // input of GroupQueryAttention; v_scale is next

struct Storage {
  int element;         // of onnx::TensorProto
  int64_t bits;        // of a code; 0: no code, values as they are
  float largest_code;  // of either sign
  float headroom;  // how many times the largest value seen is represented. A clamped value costs more than a coarser
                   // step of int8, fp8's steps grow with its values, and int4 has no step to spare
};

const Storage& StorageOf(CacheType type) {
  static constexpr Storage kInt8 = {onnx::TensorProto::INT8, 8, 127, 1.5F};
  static constexpr Storage kInt4 = {onnx::TensorProto::UINT8, 4, 7, 1};
  static constexpr Storage kFp8 = {onnx::TensorProto::FLOAT8E4M3FN, 8, 448, 2};
  static constexpr Storage kBf16 = {onnx::TensorProto::BFLOAT16, 0, 0, 0};
  static constexpr Storage kFp16 = {onnx::TensorProto::FLOAT16, 0, 0, 0};
  switch (type) {
    case CacheType::kInt8: return kInt8;
    case CacheType::kInt4: return kInt4;
    case CacheType::kFp8: return kFp8;
    case CacheType::kBf16: return kBf16;
    case CacheType::kFp16: break;
  }
  return kFp16;
}

bool IsFloat(int element) {
  return element == onnx::TensorProto::FLOAT || element == onnx::TensorProto::FLOAT16 ||
         element == onnx::TensorProto::BFLOAT16;
}

struct Plan {
  std::vector<const Layer*> readers;         // the layer and those that borrow from it
  std::array<std::vector<float>, 2> scales;  // of keys and of values; empty: no codes
};

// The scales by which the largest codes mean the largest values of present `name`, and the headroom more.
Matched<std::vector<float>> ScalesOf(const KvCache& cache, const Layer& layer, const std::string& name) {
  const Storage& storage = StorageOf(cache.type);
  if (cache.largest.empty()) return std::vector<float>{1};
  const auto found = cache.largest.find(name);
  if (found == cache.largest.end())
    return Because(DeclineCode::kCacheRange, "no values of its present '{}' were seen", name);
  std::vector<float> largest = found->second;
  const auto channels = layer.kv_heads * layer.head_size;
  if (static_cast<int64_t>(largest.size()) != channels || channels == 0)
    return Because(DeclineCode::kCacheRange, "values of {} channels were seen of its present '{}'; needs {}",
                   largest.size(), name, channels);
  if (cache.scale_per_tensor) largest = {*std::max_element(largest.begin(), largest.end())};
  // A channel that was always 0 has any scale.
  for (float& value : largest) value = value > 0 ? value * storage.headroom / storage.largest_code : 1;
  return largest;
}

Decline CheckLayer(const Rewriting& rewriting, const Layer& layer) {
  if (layer.graph != &rewriting.graph)
    return Because(DeclineCode::kInBody, "lies in {}, whose caches keep their type", layer.graph->place());
  KVSHARE_RETURN_IF_ERROR(CheckOwnCache(layer, kAllButWidth));
  const Node& node = *layer.node;
  for (const int past : {3, 4})
    if (const int element = layer.graph->ElementType(Input(node, past)); !IsFloat(element))
      return Because(DeclineCode::kCacheType, "its past '{}' holds no floats", Input(node, past));
  if (Output(node, 1).empty() || Output(node, 2).empty())
    return Because(DeclineCode::kPresentsNeeded, "has no presents, so that no cache lasts");
  return {};
}

Matched<Plan> MakePlan(const Rewriting& rewriting, const Layer& layer) {
  KVSHARE_RETURN_IF_ERROR(CheckLayer(rewriting, layer));
  Plan plan{BorrowersOf(rewriting.layers, layer), {}};
  for (const Layer* borrower : plan.readers)
    if (!BorrowsByName(*borrower) || borrower->graph != layer.graph)
      return Because(
          DeclineCode::kSourceForm,
          "layer {} borrows its cache; needs kvshare::GroupQueryAttention with external_key in the same graph",
          borrower->index);
  KVSHARE_RETURN_IF_ERROR(CheckPresents(layer, plan.readers, kAllButWidth));
  plan.readers.push_back(&layer);
  const KvCache& cache = *rewriting.options.kv_cache;
  if (StorageOf(cache.type).bits == 0) return plan;
  for (const int side : {0, 1}) {
    KVSHARE_ASSIGN_OR_RETURN(plan.scales[static_cast<size_t>(side)],
                             ScalesOf(cache, layer, Output(*layer.node, 1 + side)));
  }
  return plan;
}

// Both caches' declarations: their type, and where a byte has two codes their width.
void Declare(Graph& graph, const Layer& layer, const Storage& storage) {
  for (const int side : {0, 1})
    for (const std::string& value : {Input(*layer.node, 3 + side), Output(*layer.node, 1 + side)}) {
      graph.SetElementType(value, storage.element);
      if (storage.bits == 4) graph.SetExtent(value, -1, (layer.head_size + 1) / 2);
    }
}

std::string Meaning(const KvCache& cache) {
  const Storage& storage = StorageOf(cache.type);
  if (storage.bits == 0) return "each value rounded to it";
  if (cache.largest.empty()) return "scale 1: values beyond 448 are clamped";
  return fmt::format("a scale for each {}: values beyond {:g} times the largest seen are clamped",
                     cache.scale_per_tensor ? "cache" : "channel", storage.headroom);
}

Outcome Apply(Rewriting& rewriting, const Layer& layer) {
  const KvCache& cache = *rewriting.options.kv_cache;
  const Storage& storage = StorageOf(cache.type);
  if (layer.IsShared() || layer.graph->ElementType(Input(*layer.node, 3)) == storage.element) return Outcome::NoMatch();
  const auto plan = MakePlan(rewriting, layer);
  if (!plan.ok()) return Outcome::Declined(plan.status());
  Graph& graph = rewriting.graph;
  Declare(graph, layer, storage);
  for (const size_t side : {0U, 1U}) {
    const std::vector<float>& scales = plan->scales[side];
    if (scales.empty()) continue;
    const std::string name = graph.FreshName(Output(*layer.node, static_cast<int>(side) + 1) + "_scale");
    graph.AddFloats(name, scales);
    for (const Layer* reader : plan->readers) {
      graph.SetInput(*reader->node, kKScale + static_cast<int>(side), name);
      graph.SetString(*reader->node, side == 0 ? "k_quant_type" : "v_quant_type",
                      scales.size() == 1 ? "PER_TENSOR" : "PER_CHANNEL");
      graph.SetInt(*reader->node, "kv_cache_bit_width", storage.bits);
    }
  }
  return Outcome::Applied(fmt::format("changed contract: caches hold {}, {}", NameOf(cache.type), Meaning(cache)));
}

}  // namespace

std::string_view NameOf(CacheType type) {
  return std::ranges::find(kCacheTypes, type, &decltype(kCacheTypes)::value_type::second)->first;
}

void RunKvCache(Rewriting& rewriting) { ForEachLayer(rewriting, kKvCacheRule, Apply); }

}  // namespace kvshare::graph
