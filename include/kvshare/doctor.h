// What really runs in kvshare: a model's own session, random inputs, then the library's counters.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kvshare/rewrite.h"
#include "kvshare/runner.h"
#include "kvshare/status.h"
#include "kvshare/verify.h"

namespace kvshare {

struct NodeCount {
  std::string domain;
  std::string op;
  std::string node;
  std::string kernel;  // what served the last call: a SIMD target, or "oracle"
  int64_t ran = 0;     // calls
};

// What a kvshare library tells about itself.
struct LibraryStats {
  std::string version;
  std::string simd;  // the SIMD target chosen on this machine
  std::vector<NodeCount> nodes;
};

// Why no node of a model runs in kvshare where Diagnosis::drop_in is empty.
inline constexpr const char* kNothingToServe =
    "the model has no GroupQueryAttention and no Attention, the ops that kvshare serves; MultiHeadAttention and "
    "attention made of MatMul and Softmax are not served (PyTorch exports Attention from opset 23)";

struct Diagnosis {
  std::string workload;               // what was run, in words
  std::vector<std::string> invented;  // what the model was fed that no rule knows, a line each
  LibraryStats stats;
  std::string runtime;                // ONNX Runtime's version
  std::string runtime_where;          // and its file
  std::string library;                // kvshare's file
  Via via = Via::kOps;                // how it came into the session
  SessionEntries entries;             // those of the session
  std::string drop_in;                // DropInFor the model
  std::vector<std::string> warnings;  // the graph tool's

  int64_t NodesHere() const;  // nodes with at least one call
};

// The value of session entry kvshare.drop_in that suits a model: "1" or "attention"; "" where it has no layer of ONNX
// Runtime's own ops.
std::string DropInFor(const Inspection& inspection);

// The nodes of one op, added up.
struct OpSummary {
  std::string op;       // "kvshare::GroupQueryAttention"
  std::string kernels;  // those that served it, comma separated
  int64_t nodes = 0;
  int64_t ran = 0;  // calls
};

std::vector<OpSummary> SummarizeOps(const LibraryStats& stats);

// Loads `model_path` in `runtime` with `options.library`, which must be a kvshare library (Via::kAsNeeded means
// here: kOps beside an entry that begins with "kvshare."; else kEp from ONNX Runtime 1.24 on; before it kOps for a
// model that imports domain kvshare and kDropIn for any other), and runs it: a decoder a prefill and a decode step,
// another model once. The counters are this process's: the library is loaded here too. kInvalidInput as Inspect;
// kRefused where ONNX Runtime does not take the model or the inputs made up for it.
Result<Diagnosis> Diagnose(const std::string& model_path, const RunOptions& options, const Runtime& runtime);

}  // namespace kvshare
