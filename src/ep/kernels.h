// The kernels that this provider registers: those of src/ort, with what a plan says of their node.
#pragma once

#include <onnxruntime_c_api.h>

#include <memory>
#include <string_view>

#include "ep/handshake.h"
#include "ep/plan.h"
#include "kvshare/status.h"
#include "ort/custom_op.h"

namespace kvshare::ep {

// kInvalidInput or kRefused where no kernel serves the node. `domain` is "com.microsoft" or "".
Result<std::unique_ptr<ort::Kernel>> CreateKernel(std::string_view domain, std::string_view op,
                                                  const ort::NodeInfo& node, const Plan& plan, ort::HostVersion host);

// A kernel for ONNX Runtime. A call fails where `handshake` knows no maker of a value that the plan reads.
OrtKernelImpl* WrapKernel(const OrtApi& api, std::unique_ptr<ort::Kernel> kernel, const Plan& plan,
                          std::shared_ptr<const Handshake> handshake);

}  // namespace kvshare::ep
