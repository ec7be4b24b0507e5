// The cache of an own layer: who reads it, and may it take another form?
#pragma once

#include <string>
#include <vector>

#include "graph/layers.h"
#include "graph/match/decline.h"

namespace kvshare::graph {

std::vector<const Layer*> BorrowersOf(const std::vector<Layer>& layers, const Layer& source);

// Checks that GroupQueryAttention can take a past [B, Hkv, P, D]: one head size and a type of floats. `for_ort`: so can
// ONNX Runtime's own. kCacheType, kHeadSize.
Decline CheckGqaCache(const Graph& graph, const std::string& past_key, const std::string& past_value, bool for_ort);

// kSourceForm: it is not kvshare::GroupQueryAttention. kSourceCache: its pasts are not graph inputs that it alone
// reads.
Decline CheckOwnCache(const Layer& own);

// kvshare::GroupQueryAttention with external_key, whose borrowing is understood.
bool BorrowsByName(const Layer& borrower);

// kValueIsRead: others than graph outputs and the borrowers read a present of `own`.
Decline CheckPresents(const Layer& own, const std::vector<const Layer*>& borrowers);

}  // namespace kvshare::graph
