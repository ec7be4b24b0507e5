// The order in which a graph's nodes can run, and the faults that leave none.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "graph/attributes.h"
#include "kvshare/status.h"
#include "onnx/onnx-ml.pb.h"

namespace kvshare::graph {

// The nodes of `graph`, each behind those whose outputs it reads, else as they stand. `place` names the graph in
// messages. `is_outside`: whether a name is a value of a graph around this one. kInvalidInput for a name that is given
// twice or by nobody, and for a cycle.
Result<std::vector<Node*>> OrderNodes(onnx::GraphProto& graph, const std::string& place,
                                      const std::function<bool(const std::string& name)>& is_outside);

}  // namespace kvshare::graph
