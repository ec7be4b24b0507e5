// The adapters ask their nodes for the attributes of the table of operators, and for no others.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>

#include "backend/backend.h"
#include "core/ops.h"
#include "ort/attention.h"
#include "ort/group_query_attention.h"

namespace kvshare::ort {
namespace {

// A node of 4 query heads and 2 key-value heads, which remembers what it was asked for.
class AskedNode final : public NodeInfo {
 public:
  std::string Name() const override { return "node"; }
  std::optional<int64_t> Int(const char* attribute) const override {
    asked_.insert(attribute);
    const auto found = ints_.find(attribute);
    return found != ints_.end() ? std::optional(found->second) : std::nullopt;
  }
  std::optional<float> Float(const char* attribute) const override {
    asked_.insert(attribute);
    return std::nullopt;
  }
  std::optional<std::string> String(const char* attribute) const override {
    asked_.insert(attribute);
    return std::nullopt;
  }
  size_t InputCount() const override { return 3; }
  size_t OutputCount() const override { return 1; }
  bool HasInput(size_t) const override { return false; }
  bool HasOutput(size_t) const override { return false; }
  ONNXTensorElementDataType InputType(size_t) const override { return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED; }

  const std::set<std::string>& asked() const { return asked_; }

 private:
  std::map<std::string, int64_t> ints_ = {{"num_heads", 4}, {"kv_num_heads", 2}};
  mutable std::set<std::string> asked_;
};

TEST(Attributes, ThatAdaptersReadAreThoseOfTheTable) {
  for (const Operator& op : Operators()) {
    const AskedNode node;
    const OpBinding binding{
        op.domain,       op.name,      ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        SessionConfig{}, &CpuBackend()};
    const bool gqa = std::string_view(op.name) == "GroupQueryAttention";
    const auto kernel = gqa ? CreateGqa(binding, node) : CreateAttention(binding, node);
    ASSERT_TRUE(kernel.ok()) << kernel.status().message();
    std::set<std::string> known;
    for (const Attribute& attribute : op.attributes) known.insert(attribute.name);
    known.erase("softmax_precision");  // accepted: the kernels sum in fp32 or better
    EXPECT_EQ(node.asked(), known) << op.domain << " " << op.name;
  }
}

}  // namespace
}  // namespace kvshare::ort
