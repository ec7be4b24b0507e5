// What really runs in kvshare: a model's own session, random inputs, then the library's counters.
#pragma once

#include <string>
#include <vector>

#include "host/decoder.h"
#include "host/library_stats.h"
#include "host/ort_host.h"

namespace kvshare::host {

struct Diagnosis {
  std::string workload;  // what was run, in words
  LibraryStats stats;

  int64_t NodesHere() const;  // nodes with at least one call
};

// The nodes of one op, added up.
struct OpSummary {
  std::string op;       // "kvshare::GroupQueryAttention"
  std::string kernels;  // those that served it, comma separated
  int64_t nodes = 0;
  int64_t ran = 0;
};

std::vector<OpSummary> SummarizeOps(const LibraryStats& stats);

// Loads `model_path` with `setup`, whose library must be a kvshare library, and runs it: a decoder a prefill and a
// decode step, another model once. kRefused where ONNX Runtime does not take the model or the invented inputs.
Result<Diagnosis> Diagnose(const std::shared_ptr<const OrtHost>& ort, const std::string& model_path,
                           const SessionSetup& setup, const Caches& caches);

}  // namespace kvshare::host
