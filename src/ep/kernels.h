// The kernels that this provider registers: those of src/ort, with what a plan says of their node.
#pragma once

#include <onnxruntime_c_api.h>

#include <memory>
#include <set>
#include <string>
#include <string_view>

#include "ep/plan.h"
#include "kvshare/status.h"
#include "ort/custom_op.h"

namespace kvshare::ep {

// Values that mask groups and aliases of a session write. Filled while the session is made, then only read.
using MadeValues = std::set<std::string>;

// kInvalidInput or kRefused where no kernel serves the node. `domain` is "com.microsoft" or "".
Result<std::unique_ptr<ort::Kernel>> CreateKernel(std::string_view domain, std::string_view op,
                                                  const ort::NodeInfo& node, const Plan& plan, ort::HostVersion host);

// What ONNX Runtime calls and releases. A call fails where a value that the plan reads otherwise is not among `made`.
OrtKernelImpl* WrapKernel(const OrtApi& api, std::unique_ptr<ort::Kernel> kernel, const Plan& plan,
                          std::shared_ptr<const MadeValues> made);

}  // namespace kvshare::ep
