// Padding between the rows of caches: who else sees it, where own layers are to lose it?
#pragma once

#include <string>
#include <vector>

#include "graph/layers.h"
#include "graph/match/decline.h"

namespace kvshare::graph {

// Own layers of Attention whose caches are to become compact, and the mask [B, T] that hides the padding which they
// lose.
struct CompactLayers {
  const Graph* owner = nullptr;  // of key_mask
  std::string key_mask;
  std::vector<const Layer*> layers;
};

// Such a layer makes other numbers of padding than before, and its mask has no column for padding. kPaddingIsSeen:
// another layer of the model `graph`, or attention of single operators, keeps rows of that padding, or sees what such a
// layer makes of it.
Decline CheckPadding(const Graph& graph, const std::vector<Layer>& layers, const CompactLayers& compact);

}  // namespace kvshare::graph
