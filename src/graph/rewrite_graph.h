// The rules over a graph in memory: what Rewrite does between reading and writing.
#pragma once

#include "graph/graph.h"
#include "kvshare/rewrite.h"

namespace kvshare::graph {

// Errors: kInvalidInput and kRefused for options, kInternal where a rule broke the graph.
Result<RewriteReport> RewriteGraph(Graph& graph, const RewriteOptions& options);

}  // namespace kvshare::graph
