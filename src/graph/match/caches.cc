#include "graph/match/caches.h"

#include <algorithm>
#include <array>
#include <optional>
#include <unordered_set>
#include <utility>

#include "graph/extents.h"
#include "graph/match/readers.h"

namespace kvshare::graph {
namespace {

constexpr int64_t kOrtHeadSizes = 8;  // ONNX Runtime's GroupQueryAttention takes multiples

std::optional<int64_t> HeadSizeOf(const Graph& graph, const std::string& bnsh) {
  const auto shape = graph.Shape(bnsh);
  return shape && shape->size() == 4 && (*shape)[3] > 0 ? std::optional((*shape)[3]) : std::nullopt;
}

// Is what `node` makes some of the first `axes` extents of `value`, and no other?
bool MakesExtents(const Graph& graph, const Node& node, const std::string& value, int64_t axes) {
  const auto extents = ExtentsOf(graph, Output(node, 0));
  return extents && std::ranges::all_of(*extents, [&](const Extent& e) { return e.of == value && e.axis < axes; });
}

// Does `reader` ask for no more of `value` than its first `axes` extents? Exporters take the batch from a cache.
bool AsksForExtents(const Graph& graph, const Node& reader, const std::string& value, int64_t axes) {
  if (!graph.IsOnnx(&reader, "Shape")) return false;
  if (MakesExtents(graph, reader, value, axes)) return true;
  return CheckReadersOf(graph, reader,
                        [&](const Node& picks) {
                          return graph.IsOnnx(&picks, "Gather") && Input(picks, 0) == Output(reader, 0) &&
                                 MakesExtents(graph, picks, value, axes);
                        })
      .ok();
}

}  // namespace

Decline CheckGqaCache(const Graph& graph, const std::string& past_key, const std::string& past_value, bool for_ort) {
  for (const std::string* name : {&past_key, &past_value})
    if (const int type = graph.ElementType(*name);
        type != onnx::TensorProto::FLOAT && type != onnx::TensorProto::FLOAT16 && type != onnx::TensorProto::BFLOAT16)
      return Because(DeclineCode::kCacheType, "the element type of '{}' is {}; needs float, float16 or bfloat16", *name,
                     type == 0 ? "not known" : fmt::format("{}", type));
  const auto key = HeadSizeOf(graph, past_key);
  const auto value = HeadSizeOf(graph, past_value);
  if (key && value && *key != *value)
    return Because(DeclineCode::kHeadSize, "'{}' has head size {}, '{}' has {}; GroupQueryAttention needs one for both",
                   past_key, *key, past_value, *value);
  if (!key || !value)
    return Because(DeclineCode::kHeadSize, "the head sizes of '{}' and '{}' are not known to be one", past_key,
                   past_value);
  if (for_ort && *key % kOrtHeadSizes != 0)
    return Because(DeclineCode::kHeadSize,
                   "has head size {}; ONNX Runtime's GroupQueryAttention needs a multiple of {}", *key, kOrtHeadSizes);
  return {};
}

std::vector<const Layer*> BorrowersOf(const std::vector<Layer>& layers, const Layer& source) {
  std::vector<const Layer*> borrowers;
  for (const Layer& layer : layers)
    if (layer.IsShared() && layer.source == source.index) borrowers.push_back(&layer);
  return borrowers;
}

Decline CheckCacheMakers(const std::vector<Layer>& layers, const Layer& own) {
  const auto makers = [](const Layer& layer) {
    return std::array<const Node*, 4>{layer.key_join.node, layer.value_join.node, layer.static_key.writer,
                                      layer.static_value.writer};
  };
  const auto [key, value, key_writer, value_writer] = makers(own);
  for (const auto& [one, other] : {std::pair{key, value}, std::pair{key_writer, value_writer}})
    if (one != nullptr && one == other)
      return Because(DeclineCode::kKeyValueDiffer, "takes '{}' as key and as value; needs a cache of each",
                     one->output(0));
  for (const Layer& layer : layers) {
    if (layer.index == own.index || layer.IsShared()) continue;
    for (const Node* maker : makers(layer))
      for (const Node* ours : makers(own))
        if (maker != nullptr && maker == ours)
          return Because(DeclineCode::kKeyValueDiffer, "takes '{}', which layer {} takes beside another cache",
                         maker->output(0), layer.index);
  }
  return {};
}

Decline CheckOwnCache(const Layer& own, int64_t kept_axes) {
  const Graph& graph = *own.graph;
  if (!own.IsGqa() || !own.IsKvshare())
    return Because(DeclineCode::kSourceForm, "is not kvshare::GroupQueryAttention, which alone has such a cache");
  for (const int past : {3, 4}) {
    const std::string& name = Input(*own.node, past);
    if (!graph.IsInput(name)) return Because(DeclineCode::kSourceCache, "its past '{}' is no graph input", name);
    for (const Node* reader : graph.Consumers(name))
      if (reader != own.node && !AsksForExtents(graph, *reader, name, kept_axes))
        return Because(DeclineCode::kSourceCache, "its past '{}' is also read by {}", name, Describe(*reader));
  }
  return {};
}

bool QueriesCountRows(const Graph& graph, const std::vector<Layer>& layers) {
  std::unordered_set<std::string> counts;
  const auto add = [&](const std::string& cache) {
    for (const Node* reader : graph.Consumers(cache))
      if (graph.IsOnnx(reader, "Shape") && !AsksForExtents(graph, *reader, cache, kAllButRows))
        counts.insert(Output(*reader, 0));
  };
  std::vector<std::string> queries;
  for (const Layer& layer : layers) {
    if (layer.graph != &graph || layer.IsShared() || layer.IsGqa()) continue;
    queries.push_back(Input(*layer.node, 0));
    add(layer.key_join.node == nullptr ? Input(*layer.node, 4) : layer.key_join.past);
  }
  // Masks count rows as well: what attention makes with them is no count.
  counts = MadeWith(graph, std::move(counts), IsAttentionOp);
  return std::ranges::any_of(queries, [&](const std::string& query) { return counts.contains(query); });
}

bool BorrowsByName(const Layer& borrower) {
  return borrower.IsGqa() && borrower.IsKvshare() && !Input(*borrower.node, kExternalKey).empty() &&
         borrower.trouble.ok();
}

Decline CheckPresents(const Layer& own, const std::vector<const Layer*>& borrowers, int64_t kept_axes) {
  for (const int output : {1, 2}) {
    const std::string& present = Output(*own.node, output);
    for (const Node* reader : own.graph->Consumers(present))
      if (std::ranges::none_of(borrowers, [&](const Layer* l) { return l->node == reader; }) &&
          !AsksForExtents(*own.graph, *reader, present, kept_axes))
        return Because(DeclineCode::kValueIsRead, "present '{}' is read by {}", present, Describe(*reader));
  }
  return {};
}

}  // namespace kvshare::graph
