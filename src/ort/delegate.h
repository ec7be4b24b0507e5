// ONNX Runtime's own kernel of an op that this library replaces.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "ort/ort_context.h"

namespace kvshare::ort {

struct TypeConstraint {
  const char* name;
  ONNXTensorElementDataType type;
};

// Attributes by kind: the C API cannot list a node's, so each op names all that ORT knows.
struct AttributeNames {
  std::span<const char* const> ints;
  std::span<const char* const> floats;
  std::span<const char* const> strings;
};

// The output `index` of the call, or a tensor of its own where the node does not name it: ORT's kernels, invoked from
// here, crash on outputs that are missing.
class OutputOrTemporary {
 public:
  static Result<OutputOrTemporary> Make(const CallContext& context, size_t index, ONNXTensorElementDataType type,
                                        std::span<const int64_t> dims);
  ~OutputOrTemporary();
  OutputOrTemporary(OutputOrTemporary&& other) noexcept;
  OutputOrTemporary& operator=(OutputOrTemporary&&) = delete;

  OrtValue* value() const { return value_; }

 private:
  OutputOrTemporary(const OrtApi& api, OrtValue* value, bool owned) : api_(api), value_(value), owned_(owned) {}

  const OrtApi& api_;
  OrtValue* value_;
  bool owned_;
};

class Delegate {
 public:
  // Finds ORT's kernel for the node; the first of `versions` that ORT has. `inputs` and `outputs` count the slots of
  // ORT's schema that the node may fill. Fails with ORT's text where it has no kernel for these types.
  static Result<std::unique_ptr<Delegate>> Create(const NodeInfo& node, const char* domain, const char* op,
                                                  std::span<const int> versions,
                                                  std::span<const TypeConstraint> constraints,
                                                  const AttributeNames& attributes, size_t inputs, size_t outputs);
  ~Delegate();
  Delegate(const Delegate&) = delete;
  Delegate& operator=(const Delegate&) = delete;

  size_t inputs() const { return inputs_; }
  // Runs it. Absent inputs are null; every output is there.
  Status Invoke(const CallContext& context, std::span<const OrtValue* const> inputs,
                std::span<OrtValue* const> outputs) const;

 private:
  Delegate(const OrtApi& api, OrtOp* op, size_t inputs) : api_(api), op_(op), inputs_(inputs) {}

  const OrtApi& api_;
  OrtOp* op_;
  size_t inputs_;
};

}  // namespace kvshare::ort
