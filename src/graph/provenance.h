// How a model came to be, in the model itself.
#pragma once

#include <string>

#include "kvshare/rewrite.h"
#include "onnx/onnx-ml.pb.h"

namespace kvshare::graph {

inline constexpr const char* kProvenanceKey = "kvshare";

// Adds a line to metadata_props["kvshare"]: version, options and the rules that changed something, e.g.
// "version=0.1.0 target=kvshare keep_own=0 rope=fold min_ort=1.31 prune_inputs=0 rules=shared-attention,dead-nodes".
// One line a rewrite, the oldest first; none for a rewrite that changed nothing.
void RecordProvenance(onnx::ModelProto& model, const RewriteOptions& options, const RewriteReport& report);

}  // namespace kvshare::graph
