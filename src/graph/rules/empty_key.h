// The key and value of length 0 that mark a borrowing layer in upstream's shared form.
#pragma once

#include <string>

#include "graph/rules/rule.h"

namespace kvshare::graph {

// kCacheType or kHeadSize where it cannot be made for `layer`.
Decline CheckEmptyKey(const Layer& layer);

// The empty key and value of the borrowers of the layer's source: made once, by the first of them, with its query's
// batch.
std::string EmptyKey(Rewriting& rewriting, const Layer& layer);

}  // namespace kvshare::graph
