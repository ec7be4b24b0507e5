// ONNX Runtime's graphs, nodes and values as a plugin execution provider sees them: C API version 24. What is returned
// lives as long as the graph that it is of.
#pragma once

#include <onnxruntime_c_api.h>

#include <optional>
#include <string>
#include <vector>

#include "ort/ort_context.h"

namespace kvshare::ep {

inline constexpr uint32_t kApiVersion = 24;  // the first with a kernel registry

Result<std::vector<const OrtNode*>> NodesOf(const OrtApi& api, const OrtGraph* graph);
// Null where an optional one is absent.
Result<std::vector<const OrtValueInfo*>> InputsOf(const OrtApi& api, const OrtNode* node);
Result<std::vector<const OrtValueInfo*>> OutputsOf(const OrtApi& api, const OrtNode* node);
// "" for null.
Result<std::string> NameOf(const OrtApi& api, const OrtValueInfo* value);

struct TensorType {
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;  // undefined: unknown, or no tensor
  std::vector<int64_t> dims;                                                 // -1: not fixed
  std::vector<std::string> symbols;                                          // of dims; "" where there is none
};
Result<TensorType> TypeOf(const OrtApi& api, const OrtValueInfo* value);

// "" for ONNX's own domain.
Result<std::string> DomainOf(const OrtApi& api, const OrtNode* node);
Result<std::string> OpOf(const OrtApi& api, const OrtNode* node);
Result<std::string> NodeNameOf(const OrtApi& api, const OrtNode* node);

std::optional<int64_t> IntOf(const OrtApi& api, const OrtOpAttr* attribute);
std::optional<float> FloatOf(const OrtApi& api, const OrtOpAttr* attribute);
std::optional<std::string> StringOf(const OrtApi& api, const OrtOpAttr* attribute);
std::optional<std::vector<int64_t>> IntsOf(const OrtApi& api, const OrtOpAttr* attribute);

// A node of a graph that is not yet partitioned: what KernelInfo is once it is.
class GraphNode final : public ort::NodeInfo {
 public:
  static Result<GraphNode> Make(const OrtApi& api, const OrtNode* node);

  const std::string& domain() const { return domain_; }
  const std::string& op() const { return op_; }
  const std::vector<std::string>& outputs() const { return outputs_; }

  std::string Name() const override { return name_; }
  std::optional<int64_t> Int(const char* attribute) const override { return IntOf(*api_, Attribute(attribute)); }
  std::optional<float> Float(const char* attribute) const override { return FloatOf(*api_, Attribute(attribute)); }
  std::optional<std::string> String(const char* attribute) const override {
    return StringOf(*api_, Attribute(attribute));
  }
  size_t InputCount() const override { return inputs_.size(); }
  size_t OutputCount() const override { return outputs_.size(); }
  bool HasInput(size_t index) const override { return index < inputs_.size() && !inputs_[index].empty(); }
  bool HasOutput(size_t index) const override { return index < outputs_.size() && !outputs_[index].empty(); }
  ONNXTensorElementDataType InputType(size_t index) const override {
    return HasInput(index) ? types_[index] : ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  }

 private:
  GraphNode(const OrtApi& api, const OrtNode* node) : api_(&api), node_(node) {}
  // Null where the node has none of that name.
  const OrtOpAttr* Attribute(const char* name) const;

  const OrtApi* api_;
  const OrtNode* node_;
  std::string name_, domain_, op_;
  std::vector<std::string> inputs_;  // "" where absent
  std::vector<std::string> outputs_;
  std::vector<ONNXTensorElementDataType> types_;
};

}  // namespace kvshare::ep
