// How many copies between CPU and GPU would the CUDA provider insert around attention? A prediction from a table.
#pragma once

#include <cstdint>

#include "graph/graph.h"

namespace kvshare::graph {

// Memcpy nodes for values that cross between nodes with and without a CUDA kernel. The table is ONNX Runtime's of the
// time the mixed graphs were exported (April 2026): CumSum, Less and GreaterOrEqual of INT64 and And had no CUDA
// kernel, and GroupQueryAttention has none in float32; kvshare's operators run on the CPU so far. Nodes that compute
// shapes run on the CPU without a copy.
int64_t PredictedCudaCopies(const Graph& graph);

}  // namespace kvshare::graph
