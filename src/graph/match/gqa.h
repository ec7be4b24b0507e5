// Guards of GroupQueryAttention: what must hold before a node may run in kvshare.
#pragma once

#include <vector>

#include "graph/layers.h"
#include "graph/masks.h"
#include "graph/match/decline.h"

namespace kvshare::graph {

// Its attributes.
Decline CheckGqaNode(const Layer& layer);

// A layer that borrows from `layers[layer.source]`: its attributes, and how the two must agree.
Decline CheckSharedGqa(const std::vector<Layer>& layers, const Layer& layer);

// The meaning of the layer's attention_bias, if the node's attributes and lengths can say all of it: causality, a
// window, and padding.
Matched<MaskMeaning> MatchBias(const Layer& layer);

}  // namespace kvshare::graph
