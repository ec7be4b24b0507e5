// Is this still a valid model? Run after every rule: an edit that breaks a model is a fault of ours.
#pragma once

#include "graph/graph.h"

namespace kvshare::graph {

// In the main graph and every body: each input is produced before it is read, no value is produced twice, each graph
// output is produced, and each node's domain is imported (by the model, or by ONNX Runtime for every model) or is that
// of a function of the model. kInvalidInput names the first offender.
Status Validate(const Graph& graph);

}  // namespace kvshare::graph
