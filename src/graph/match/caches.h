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

// Axes of a cache [B, Hkv, rows, D] that a rewrite leaves alone, counted from the first.
inline constexpr int64_t kAllButRows = 2;  // and D
inline constexpr int64_t kAllButWidth = 3;

// Do the nodes that make an own layer's cache, outside of it, make key and value apart, and those of no other own
// layer? kKeyValueDiffer.
Decline CheckCacheMakers(const std::vector<Layer>& layers, const Layer& own);

// kSourceForm: it is not kvshare::GroupQueryAttention. kSourceCache: its pasts are not graph inputs that it alone
// reads; others may ask for the first `kept_axes` extents.
Decline CheckOwnCache(const Layer& own, int64_t kept_axes);

// Does a query depend on how many rows a cache has? So exporters number tokens where the model has no position_ids: a
// sequence's tokens then count the padding before them. Of own Attention layers in `graph`.
bool QueriesCountRows(const Graph& graph, const std::vector<Layer>& layers);

// kvshare::GroupQueryAttention with external_key, whose borrowing is understood.
bool BorrowsByName(const Layer& borrower);

// kValueIsRead: others than graph outputs and the borrowers read a present of `own`, and more of it than its first
// `kept_axes` extents.
Decline CheckPresents(const Layer& own, const std::vector<const Layer*>& borrowers, int64_t kept_axes);

}  // namespace kvshare::graph
