// Words for people: which exporter wrote a model, and in which form each layer is. Both follow from the file.
#pragma once

#include <string>

#include "graph/graph.h"
#include "graph/layers.h"

namespace kvshare::graph {

// "torch.onnx.export (dynamo), PyTorch 2.13.0+cpu"; "" where the file does not name one.
std::string ProducerText(const Graph& graph);

// "own Attention, caches joined by Concat, heads repeated for their queries".
std::string FormText(const Layer& layer);

}  // namespace kvshare::graph
