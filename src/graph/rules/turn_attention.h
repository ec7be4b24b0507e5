// Shared by the rules that turn ai.onnx's Attention into kvshare's.
#pragma once

#include <string>

#include "graph/layers.h"
#include "graph/masks.h"
#include "graph/rules/rule.h"

namespace kvshare::graph {

// The padding [B, 1, 1, T] that the layer's mask hides, true keeps: of those columns of attention_mask that have a key.
// Made once for all layers of a graph with as many keys.
std::string PaddingOf(Rewriting& rewriting, const Layer& layer, const MaskMeaning& mask);

// In place of the layer's mask: a window, causality by position, and the graph input that its padding comes from. Key,
// value and past stay as they are.
void TurnIntoKvshareAttention(Rewriting& rewriting, const Layer& layer, const MaskMeaning& mask);

// Kvshare's Attention in place of ai.onnx's, with the layer's mask and lengths: it means the same. Keys and values that
// it borrows are taken as they are.
Outcome TurnAsItIs(Rewriting& rewriting, const Layer& layer, std::string note);

// A layer that needs its mask keeps it: kvshare's Attention reads the keys and values that it borrows as they are.
Outcome TurnWithItsMask(Rewriting& rewriting, const Layer& layer);

}  // namespace kvshare::graph
