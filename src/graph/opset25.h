// May a model that imports an earlier opset of ai.onnx be read as one of opset 25?
#pragma once

#include "graph/graph.h"
#include "graph/match/decline.h"

namespace kvshare::graph {

// Attention has window attributes from it on.
inline constexpr int64_t kWindowOpset = 25;

// kOpsetChanged: a node, in whatever graph or function of the model, that has another meaning there.
Decline CheckRaise(const Graph& graph);

}  // namespace kvshare::graph
