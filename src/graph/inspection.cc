#include "graph/inspection.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <unordered_set>

#include "graph/layers.h"
#include "graph/masks.h"
#include "graph/match/equal_caches.h"
#include "graph/schema.h"
#include "graph/unfused.h"
#include "graph/written.h"

namespace kvshare {

int64_t Inspection::CacheBytes() const {
  return std::accumulate(layers.begin(), layers.end(), int64_t{0}, [](int64_t bytes, const AttentionLayer& layer) {
    return bytes + layer.row_bytes * (layer.cache_rows > 0 ? layer.cache_rows : kCacheTokens);
  });
}

int64_t Inspection::EqualCacheBytes() const {
  return std::accumulate(equal_caches.begin(), equal_caches.end(), int64_t{0},
                         [](int64_t bytes, const EqualCache& cache) { return bytes + cache.bytes; });
}

namespace graph {
namespace {

int64_t BytesOf(int element_type) {
  switch (element_type) {
    case onnx::TensorProto::DOUBLE: return 8;
    case onnx::TensorProto::FLOAT: return 4;
    case onnx::TensorProto::FLOAT16:
    case onnx::TensorProto::BFLOAT16: return 2;
    case onnx::TensorProto::INT8:
    case onnx::TensorProto::UINT8:
    case onnx::TensorProto::FLOAT8E4M3FN: return 1;
    default: return 0;
  }
}

// Bytes of one row of `past`, [B, heads, rows, width] or [B, rows, width], of one sequence; 0: not known.
int64_t RowBytes(const Graph& graph, const std::string& past) {
  const auto shape = graph.Shape(past);
  if (!shape || (shape->size() != 3 && shape->size() != 4)) return 0;
  const int64_t heads = shape->size() == 4 ? (*shape)[1] : 1;
  return std::max<int64_t>(heads, 0) * std::max<int64_t>(shape->back(), 0) * BytesOf(graph.ElementType(past));
}

int PastSlot(const Layer& layer) { return layer.IsGqa() ? 3 : 4; }

// The key's cache and the value's.
std::array<std::string, 2> CachesOf(const Layer& layer) {
  if (layer.key_join.node != nullptr) return {layer.key_join.past, layer.value_join.past};
  if (layer.static_key.writer != nullptr) return {layer.static_key.cache, layer.static_value.cache};
  return {Input(*layer.node, PastSlot(layer)), Input(*layer.node, PastSlot(layer) + 1)};
}

// Bytes of the key and the value that a layer adds for one token; 0: not known.
int64_t RowBytes(const Layer& layer) {
  const auto caches = CachesOf(layer);
  const int64_t key = RowBytes(*layer.graph, caches[0]);
  const int64_t value = RowBytes(*layer.graph, caches[1]);
  return key > 0 && value > 0 ? key + value : 0;
}

// Rows of a GroupQueryAttention's cache that is as long after a step as before it; 0: it grows.
int64_t FixedRows(const Layer& layer) {
  const auto past = layer.graph->Shape(Input(*layer.node, 3));
  const auto present = layer.graph->Shape(Output(*layer.node, 1));
  const bool is_fixed = past && present && past->size() == 4 && present->size() == 4 && (*past)[2] == (*present)[2];
  return is_fixed ? std::max<int64_t>((*past)[2], 0) : 0;
}

AttentionLayer Public(const Layer& layer) {
  AttentionLayer out;
  out.index = layer.index;
  out.node = NameOf(*layer.node);
  out.place = layer.graph->place();
  out.domain = DomainOf(*layer.node);
  out.form = layer.form;
  out.kind = layer.kind;
  out.source = layer.source;
  out.source_key = layer.key;
  out.window = layer.window;
  out.window_known = layer.mask_trouble.ok();
  out.query_heads = layer.query_heads;
  out.kv_heads = layer.kv_heads;
  out.expansion = layer.expansion;
  out.head_size = layer.head_size;
  out.written = FormText(layer);
  out.cache_rows = layer.key_join.last > 0 ? layer.key_join.last : layer.static_key.rows;
  if (!layer.IsShared()) {
    out.row_bytes = RowBytes(layer);
    const auto caches = CachesOf(layer);
    out.past_key = caches[0];
    out.past_value = caches[1];
  }
  if (layer.IsGqa()) {
    out.seqlens_k = Input(*layer.node, 5);
    out.total_sequence_length = Input(*layer.node, 6);
  } else {
    out.nonpad_kv_seqlen = Input(*layer.node, 6);
  }
  if (layer.IsGqa() && !layer.IsShared()) {
    out.cache_rows = layer.IsKvshare() ? std::max<int64_t>(IntAttribute(*layer.node, kWindowCacheRows), 0) : 0;
    if (out.cache_rows == 0) out.cache_rows = FixedRows(layer);
    out.window_sized = IntAttribute(*layer.node, "sliding_window_cache") == 1;
  }
  out.note = (layer.trouble.ok() ? layer.mask_trouble : layer.trouble).message();
  if (out.note.empty() && layer.constant_empty) out.note = "empty key is a constant: batch 1 only";
  return out;
}

// "Attention 'x' and 4 more", or nothing where there is none.
class Group {
 public:
  void Add(const Node& node) {
    if (count_++ == 0) first_ = Describe(node);
  }
  explicit operator bool() const { return count_ > 0; }
  std::string Text() const { return count_ == 1 ? first_ : fmt::format("{} and {} more", first_, count_ - 1); }

 private:
  int count_ = 0;
  std::string first_;
};

// A triangle over more keys than queries whose alignment changed.
bool IsCausalTrap(const Layer& layer) {
  const Node& node = *layer.node;
  return !layer.IsGqa() && !layer.IsKvshare() && layer.IsShared() && !layer.made_outside &&
         IntAttribute(node, "is_causal") == 1 && !layer.key.empty() && Input(node, 4).empty() && Input(node, 6).empty();
}

std::vector<std::string> Warnings(const std::vector<Layer>& layers) {
  std::vector<std::string> warnings;
  Group trap;
  Group flat_mask;
  Group fixed_batch;
  Group crash;
  Group repeated;
  for (const Layer& layer : layers) {
    const Node& node = *layer.node;
    if (IsCausalTrap(layer)) trap.Add(node);
    if (!layer.IsGqa() && !layer.IsKvshare() && !Input(node, 3).empty())
      if (const auto mask = ReadMask(*layer.graph, Input(node, 3)); mask.ok() && mask->rank == 3) flat_mask.Add(node);
    if (layer.constant_empty) fixed_batch.Add(node);
    if (layer.expansion > 1) repeated.Add(node);
    if (layer.IsShared() && layer.IsGqa() && !layer.IsKvshare() && Output(node, 1).empty()) crash.Add(node);
    for (const auto& unknown : UnknownAttributes(node))
      warnings.push_back(fmt::format("{}: attribute '{}' is not one of its operator's and has no effect{}",
                                     Describe(node), unknown.name,
                                     unknown.nearest.empty() ? "" : fmt::format("; '{}' is meant?", unknown.nearest)));
    for (const std::string& name : DropInAttributes(node))
      warnings.push_back(
          fmt::format("{}: attribute '{}' has an effect in kvshare's drop-in only; ONNX Runtime's own "
                      "operator ignores it",
                      Describe(node), name));
  }
  if (trap)
    warnings.push_back(
        fmt::format("{}: is_causal=1 without a past and with fewer queries than keys: ONNX Runtime 1.28 and "
                    "later let a decoded token see the first key only; kvshare rewrite repairs it",
                    trap.Text()));
  if (flat_mask)
    warnings.push_back(
        fmt::format("{}: mask is [B,S,T], whose B meets the heads; wrong or an error for batches larger than "
                    "1; kvshare rewrite repairs it",
                    flat_mask.Text()));
  if (fixed_batch)
    warnings.push_back(fmt::format("{}: the empty key is a constant of batch 1; ONNX Runtime refuses other batches",
                                   fixed_batch.Text()));
  if (crash)
    warnings.push_back(
        fmt::format("{}: presents are not named, which ONNX Runtime 1.27 to 1.30 crash on; needs 1.31", crash.Text()));
  if (repeated)
    warnings.push_back(
        fmt::format("{}: the graph copies each key-value head once for every query head of its group (repeat_kv), at "
                    "every step; kvshare rewrite takes the heads as they are",
                    repeated.Text()));
  return warnings;
}

int64_t CountNodes(const Graph& graph) {
  auto count = static_cast<int64_t>(graph.nodes().size());
  for (const Graph* body : graph.bodies()) count += CountNodes(*body);
  return count;
}

// ai.onnx has Attention from opset 23 on.
bool ImportsAttention(const Graph& graph) {
  return std::ranges::any_of(graph.model().opset_import(), [](const auto& import) {
    return CanonicalDomain(import.domain()).empty() && import.version() >= 23;
  });
}

}  // namespace

Inspection Describe(const Graph& graph) {
  Inspection inspection;
  const std::vector<Layer> layers = FindLayers(graph);
  std::unordered_set<const Node*> masks;
  std::unordered_set<const Node*> copies;
  std::unordered_set<const Node*> repeats;
  for (const Layer& layer : layers) {
    inspection.layers.push_back(Public(layer));
    if (const std::string& mask = MaskValueOf(layer); !mask.empty())
      for (const Node* node : MaskNodes(*layer.graph, mask)) masks.insert(node);
    (layer.expansion > 1 ? repeats : copies).insert(layer.copies.begin(), layer.copies.end());
    if (!layer.IsShared() || !layer.IsGqa()) continue;
    for (const int output : {1, 2})
      if (const auto& present = Output(*layer.node, output); !present.empty() && !layer.graph->IsRead(present))
        ++inspection.named_unused_presents;
  }
  inspection.nodes = CountNodes(graph);
  inspection.mask_nodes = static_cast<int64_t>(masks.size());
  inspection.borrowed_copies = static_cast<int64_t>(copies.size());
  inspection.repeat_nodes = static_cast<int64_t>(repeats.size());
  for (const auto& import : graph.model().opset_import()) {
    inspection.imports.push_back(import.domain());
    inspection.opsets.push_back(import.version());
  }
  inspection.producer = ProducerText(graph);
  inspection.warnings = Warnings(layers);
  inspection.unfused_layers = CountUnfusedAttention(graph);
  if (inspection.unfused_layers > 0)
    inspection.warnings.push_back(fmt::format(
        "{} layers compute attention by MatMul and Softmax, which kvshare does not serve; {}",
        inspection.unfused_layers,
        ImportsAttention(graph)
            ? "PyTorch writes Attention where the model calls scaled_dot_product_attention (in transformers by "
              "attn_implementation='sdpa')"
            : "export with opset 23 or later, which has Attention"));
  return inspection;
}

std::vector<EqualCache> DescribeEqualCaches(const Graph& graph) {
  std::vector<EqualCache> caches = FindEqualCaches(graph, FindLayers(graph)).caches;
  for (EqualCache& cache : caches) {
    const int64_t row_bytes = RowBytes(graph, cache.past);
    if (row_bytes == 0) continue;
    const int64_t rows = graph.Shape(cache.past)->end()[-2];
    cache.bytes = row_bytes * (rows > 0 ? rows : kCacheTokens);
  }
  return caches;
}

}  // namespace graph
}  // namespace kvshare
