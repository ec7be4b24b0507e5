#include "graph/match/caches.h"

#include <algorithm>
#include <optional>

namespace kvshare::graph {
namespace {

constexpr int64_t kOrtHeadSizes = 8;  // ONNX Runtime's GroupQueryAttention takes multiples

std::optional<int64_t> HeadSizeOf(const Graph& graph, const std::string& bnsh) {
  const auto shape = graph.Shape(bnsh);
  return shape && shape->size() == 4 && (*shape)[3] > 0 ? std::optional((*shape)[3]) : std::nullopt;
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
  if (!key || !value || *key != *value)
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

Decline CheckOwnCache(const Layer& own) {
  if (!own.IsGqa() || !own.IsKvshare())
    return Because(DeclineCode::kSourceForm, "is not kvshare::GroupQueryAttention, which alone has such a cache");
  for (const int past : {3, 4})
    if (const std::string& name = Input(*own.node, past);
        !own.graph->IsInput(name) || own.graph->Consumers(name).size() != 1)
      return Because(DeclineCode::kSourceCache, "its past '{}' is no graph input that it alone reads", name);
  return {};
}

bool BorrowsByName(const Layer& borrower) {
  return borrower.IsGqa() && borrower.IsKvshare() && !Input(*borrower.node, kExternalKey).empty() &&
         borrower.trouble.ok();
}

Decline CheckPresents(const Layer& own, const std::vector<const Layer*>& borrowers) {
  for (const int present : {1, 2})
    for (const Node* reader : own.graph->Consumers(Output(*own.node, present)))
      if (std::none_of(borrowers.begin(), borrowers.end(), [&](const Layer* l) { return l->node == reader; }))
        return Because(DeclineCode::kValueIsRead, "present '{}' is read by {}", Output(*own.node, present),
                       Describe(*reader));
  return {};
}

}  // namespace kvshare::graph
