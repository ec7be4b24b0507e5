// A custom op as ONNX Runtime sees it: a row of names and types, a kernel, a shape inference.
#pragma once

#include <onnxruntime_c_api.h>

#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "core/ops.h"
#include "kvshare/status.h"
#include "ort/ort_context.h"
#include "ort/session_config.h"

namespace kvshare::ort {

// What a kernel knows of its node beyond its attributes.
struct OpBinding {
  const char* domain;
  const char* op;
  ONNXTensorElementDataType t;
  ONNXTensorElementDataType cache;
  SessionConfig config;
  const Backend* backend;
};

// One node's kernel. Run() may be called from several threads at once.
class Kernel {
 public:
  virtual ~Kernel() = default;
  virtual Status Run(CallContext& context) = 0;
};

// The node that a shape inference looks at. Its methods report nothing that the graph does not know.
class InferContext {
 public:
  InferContext(const OrtApi& api, OrtShapeInferContext* context, bool all_outputs)
      : api_(api), context_(context), all_outputs_(all_outputs) {}

  // Whether outputs past 0 may be set: releases before 1.28 abort where the node lacks them.
  bool all_outputs() const { return all_outputs_; }
  // Rank, or -1 where the input is absent or its shape is not known.
  int Rank(size_t input) const;
  // Extent, or -1 where it is not a constant.
  int64_t Dim(size_t input, size_t axis) const;
  int64_t Int(const char* attribute, int64_t absent) const;
  ONNXTensorElementDataType Type(size_t input) const;
  // One extent of an output: a constant, -1 for unknown, or that of an input (with its symbol).
  struct Extent {
    int64_t value = -1;
    int input = -1;
    int axis = -1;
  };
  Status SetOutput(size_t output, ONNXTensorElementDataType type, std::span<const Extent> extents) const;

 private:
  const OrtApi& api_;
  OrtShapeInferContext* context_;
  bool all_outputs_;
};

// A row of the op table in register.cc.
struct OpRow {
  const char* domain;
  const char* op;
  std::span<const Slot> inputs;
  std::span<const Slot> outputs;
  std::span<const ONNXTensorElementDataType> t;      // every kT ...
  std::span<const ONNXTensorElementDataType> cache;  // ... is registered with every kCache
  Result<std::unique_ptr<Kernel>> (*create)(const OpBinding& binding, const NodeInfo& node);
  Status (*infer)(const InferContext& context);
};

// The OrtCustomOp of one row and one pair of types.
struct CustomOp : OrtCustomOp {
  CustomOp(const OrtApi& api, const OpRow& row, const OpBinding& binding);
  // The last ones of a row: they take whatever no other does, and refuse it by name.
  bool AnyTypes() const { return binding.cache == ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED; }
  // The ONNX Runtime that this op was registered with: a process may have loaded several.
  const OrtApi& api;
  const OpRow& row;
  OpBinding binding;
};

// Keeps `line` for the logger of the next kernel that is created: registration itself has no logger.
void AnnounceAtFirstKernel(std::string line);

// The op's row in the op table; null where there is none.
const OpRow* FindOp(std::string_view domain, std::string_view op);
// The ops that `config` asks for in the ONNX Runtime of `api`, domain by domain; for the life of the process.
Result<std::vector<OrtCustomOpDomain*>> DomainsOf(const OrtApi& api, const SessionConfig& config);

}  // namespace kvshare::ort
