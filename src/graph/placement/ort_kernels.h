// Which operators ONNX Runtime has CUDA kernels for, by release: ort_cuda_kernels.inc as data.
#pragma once

#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "graph/graph.h"

namespace kvshare::graph {

enum class Provider { kCuda, kCpu, kUnknown };

// Where a node runs, by the kernels that there are for it.
struct KernelFacts {
  Provider provider = Provider::kUnknown;
  std::string why;                        // not on CUDA: the reason, without the node
  std::vector<std::string> output_types;  // "f16"; "" where not known
  std::set<int> host_inputs;              // of a CUDA kernel: slots in the host's memory
  std::set<int> host_outputs;
};

// A minor release, 29 of "1.29" and "1.29.1"; nothing where there is no table of it.
std::optional<int> ReleaseOf(const std::string& text);
// "1.23 to 1.30".
std::string KnownReleases();
// The date of a release's sources, where they are older than the release and kernels may be missing; else "".
std::string_view UnfinishedSourcesOf(int release);

// "f32" for a TensorProto::DataType; "" where there is none of the table's.
std::string_view TypeName(int element_type);

// `input_types`: one for each input of `node`, "" where absent or not known. `opset`: what the model imports of the
// node's domain.
KernelFacts LookUpKernel(const Node& node, int64_t opset, const std::vector<std::string>& input_types, int release);

}  // namespace kvshare::graph
