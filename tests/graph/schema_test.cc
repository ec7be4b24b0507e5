// Which attributes of attention nodes an operator has.
#include "graph/schema.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kvshare::graph {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

Node Make(const char* domain, const char* op, std::initializer_list<const char*> attributes) {
  Node node;
  node.set_domain(domain);
  node.set_op_type(op);
  for (const char* name : attributes) {
    auto* attribute = node.add_attribute();
    attribute->set_name(name);
    attribute->set_type(onnx::AttributeProto::INT);
    attribute->set_i(3);
  }
  return node;
}

std::vector<std::string> Unknown(const Node& node) {
  std::vector<std::string> names;
  for (const auto& unknown : UnknownAttributes(node)) names.push_back(unknown.name + " " + unknown.nearest);
  return names;
}

TEST(Schema, KnowsTheWindowsThatEachAttentionReads) {
  const auto windows = {"left_window_size", "right_window_size", "local_window_size"};
  for (const char* domain : {"", "ai.onnx", "kvshare"})
    EXPECT_THAT(Unknown(Make(domain, "Attention", windows)), IsEmpty()) << domain;
  EXPECT_THAT(Unknown(Make("kvshare", "GroupQueryAttention", windows)),
              ElementsAre("left_window_size ", "right_window_size "));
}

TEST(Schema, TellsWhichAttributesOnlyTheDropInReads) {
  const auto local = {"local_window_size"};
  for (const char* domain : {"", "ai.onnx"}) {
    EXPECT_THAT(DropInAttributes(Make(domain, "Attention", local)), ElementsAre("local_window_size"));
    EXPECT_EQ(UnknownAttributeText(Make(domain, "Attention", local)),
              "has attribute 'local_window_size', which Attention knows only where kvshare's drop-in replaces it");
  }
  EXPECT_THAT(DropInAttributes(Make("kvshare", "Attention", local)), IsEmpty());
  EXPECT_THAT(DropInAttributes(Make("com.microsoft", "GroupQueryAttention", local)), IsEmpty());
  EXPECT_EQ(UnknownAttributeText(Make("kvshare", "Attention", local)), "");
}

TEST(Schema, NamesTheNearestOfAMisspeltAttribute) {
  EXPECT_THAT(Unknown(Make("com.microsoft", "GroupQueryAttention", {"local_windw_size", "num_heads", "mine"})),
              ElementsAre("local_windw_size local_window_size", "mine "));
  EXPECT_EQ(UnknownAttributeText(Make("", "Attention", {"sclae"})),
            "has attribute 'sclae', which Attention does not know (scale?)");
}

}  // namespace
}  // namespace kvshare::graph
