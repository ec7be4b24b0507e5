#include "graph/match/caches.h"

#include <algorithm>

namespace kvshare::graph {

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
