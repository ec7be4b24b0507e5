// Where ONNX Runtime's CUDA provider would run the nodes of a model, and what it would copy between GPU and host.
#pragma once

#include <string>

#include "graph/graph.h"
#include "kvshare/rewrite.h"

namespace kvshare::graph {

// A prediction by the table of ort_kernels.h and by the rules of ONNX Runtime's
// partitioner: nodes on the way from shapes go to the CPU; a value that both sides touch is copied once. Constants are
// folded. kInvalidInput: a release that has no table.
Result<CudaPlacement> PlaceOnCuda(const Graph& graph, const std::string& release);

}  // namespace kvshare::graph
