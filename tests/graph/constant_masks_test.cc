// Masks that a tool has folded into constants: what their values say, and what they do not.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <fstream>

#include "graph/masks.h"
#include "tests/graph/rewrite_text.h"
#include "tests/graph/torch_layers.h"

namespace kvshare::graph {
namespace {

std::string TextWith(const std::string& mask) { return "output mask f32[]\n" + mask; }

struct Folded {
  const char* name;
  const char* mask;
  int64_t window;
  int64_t queries;
};

class ReadFoldedMask : public testing::TestWithParam<Folded> {};

TEST_P(ReadFoldedMask, GivesWindowAndCausalityByItsValues) {
  const auto mask = ReadMask(GraphOf(TextWith(GetParam().mask)), "mask");
  ASSERT_TRUE(mask.ok()) << mask.status().message();
  EXPECT_EQ(mask->window, GetParam().window);
  EXPECT_TRUE(mask->causal);
  EXPECT_FALSE(mask->padding);
  EXPECT_EQ(mask->rank, 4);
  ASSERT_TRUE(mask->columns.has_value());
  EXPECT_TRUE(mask->columns->queries->Is(GetParam().queries));
  EXPECT_TRUE(mask->columns->keys.Is(4));
}

INSTANTIATE_TEST_SUITE_P(
    Values, ReadFoldedMask,
    testing::Values(Folded{"Triangle", "const mask bool[1,1,4,4] = 1 0 0 0 1 1 0 0 1 1 1 0 1 1 1 1", -1, 4},
                    Folded{"Chunk", "const mask bool[1,1,2,4] = 1 1 1 0 1 1 1 1", -1, 2},
                    Folded{"ChunkInAWindow", "const mask bool[1,1,2,4] = 0 1 1 0 0 0 1 1", 2, 2},
                    Folded{"WindowThatBeginsInside", "const mask bool[1,1,2,4] = 1 1 1 0 0 1 1 1", 3, 2},
                    Folded{"Step", "const mask bool[1,1,1,4] = 1 1 1 1", -1, 1},
                    Folded{"StepInAWindow", "const mask bool[1,1,1,4] = 0 0 1 1", 2, 1},
                    Folded{"OfTwoAxes", "const mask bool[2,4] = 1 1 1 0 1 1 1 1", -1, 2},
                    Folded{"TheSameForAllSequences", "const mask bool[2,1,1,4] = 0 0 1 1 0 0 1 1", 2, 1},
                    Folded{"Numbers", "const mask f32[1,1,2,4] = 0 0 0 -70000 -70000 0 0 0", 3, 2},
                    Folded{"Identity", "const folded bool[1,1,1,4] = 0 1 1 1\nmask = Identity(folded)", 3, 1}),
    [](const auto& test) { return std::string(test.param.name); });

class ReadOddConstant : public testing::TestWithParam<NearMiss> {};

TEST_P(ReadOddConstant, SaysWhatItsValuesSay) {
  const auto mask = ReadMask(GraphOf(TextWith(GetParam().line)), "mask");
  EXPECT_EQ(mask.status().message(), GetParam().reason);
}

INSTANTIATE_TEST_SUITE_P(
    Values, ReadOddConstant,
    testing::Values(
        NearMiss{"SeesALaterKey", "mask", "const mask bool[1,1,3,4] = 1 1 1 0 1 1 1 1 1 1 1 1",
                 "mask: constant 'mask' lets query 0 see keys 0 to 2; by its other queries it needs 0 to 1"},
        NearMiss{"WindowsDiffer", "mask", "const mask bool[1,1,2,4] = 0 1 1 0 0 1 1 1",
                 "mask: constant 'mask' lets query 0 see keys 1 to 2; by its other queries it needs 0 to 2"},
        NearMiss{"AKeyBetweenIsHidden", "mask", "const mask bool[1,1,1,4] = 1 0 1 1",
                 "mask: constant 'mask' hides key 1 from query 0, which sees keys on both sides of it"},
        NearMiss{"AllIsHidden", "mask", "const mask bool[1,1,1,4] = 0 0 0 0",
                 "mask: constant 'mask' hides all keys from query 0"},
        NearMiss{"TheLastKeysAreHidden", "mask", "const mask bool[1,1,1,4] = 1 1 0 0",
                 "mask: constant 'mask' lets query 0 see keys 0 to 1; by its other queries it needs 0 to 3"},
        NearMiss{"HeadsDiffer", "mask", "const mask bool[1,2,1,4] = 0 0 1 1 0 1 1 1",
                 "mask: constant 'mask' differs along an axis before its last two; needs one mask for all heads and "
                 "sequences"},
        NearMiss{"ABias", "mask", "const mask f32[1,1,1,4] = 0 0.5 0 0",
                 "mask: constant 'mask' adds 0.5 to a score; needs 0 or at most -65504"},
        NearMiss{"MoreQueriesThanKeys", "mask", "const mask bool[1,1,3,2] = 1 1 1 1 1 1",
                 "mask: constant 'mask' has shape [1,1,3,2]; needs a row a query and a column a key"},
        NearMiss{"OfNumbersThatAreWhole", "mask", "const mask i64[1,1,1,4] = 1 1 1 1",
                 "mask: constant 'mask' is not read: it has more than 4194304 elements, or another type than bool and "
                 "floating point"},
        NearMiss{"NotCausal", "mask", "const mask bool[1,1,2,2] = 1 1 1 1",
                 "mask: 'mask' compares columns and is not causal"}),
    [](const auto& test) { return std::string(test.param.name); });

// What tools leave of the mask of PyTorch's exporter where shapes are fixed.
constexpr std::string_view kFoldedParts = R"(
input attention_mask i64[2,3]
output mask bool[2,1,2,3]
const visible bool[1,1,2,3] = 1 1 0 0 1 1
const index i64[2,1,1,3,2] = 0 0 0 1 0 2 1 0 1 1 1 2
flags = Cast(attention_mask) {to=9}
kept = GatherND(flags, index)
mask = And(visible, kept)
)";

TEST(FoldedParts, AreReadBesideThePaddingOfTheCaller) {
  const auto mask = ReadMask(GraphOf(kFoldedParts), "mask");
  ASSERT_TRUE(mask.ok()) << mask.status().message();
  EXPECT_EQ(mask->window, 2);
  EXPECT_TRUE(mask->causal);
  EXPECT_TRUE(mask->padding);
  EXPECT_EQ(mask->key_mask, "attention_mask");
}

TEST(FoldedParts, OfOtherRowsAreNotRead) {
  const std::string text = TwoLayersWith("index", "const index i64[2,1,1,3,2] = 0 0 0 1 0 2 0 0 0 1 0 2", kFoldedParts);
  EXPECT_EQ(ReadMask(GraphOf(text), "mask").status().message(),
            "mask: GatherND 'kept' does not take the first T columns of all rows of a mask");
}

TEST(FoldedParts, OfFewerRowsAreNotRead) {
  const std::string text = TwoLayersWith("index", "const index i64[1,1,1,3,2] = 0 0 0 1 0 2", kFoldedParts);
  EXPECT_EQ(ReadMask(GraphOf(text), "mask").status().message(),
            "mask: GatherND 'kept' does not take the first T columns of all rows of a mask");
}

TEST(FoldedParts, AreConditionsAndNoBias) {
  const std::string text = TwoLayersWith("visible", "const visible f32[1,1,2,3] = 0 0 -70000 0 0 0", kFoldedParts);
  EXPECT_EQ(ReadMask(GraphOf(text), "mask").status().message(),
            "mask: constant 'visible' is one of its conditions, and not bool");
}

TEST(ReadConstantMask, ReadsNumbersThatLieBesideTheModel) {
  const std::filesystem::path folder = testing::TempDir();
  const std::string name = fmt::format("masks_{}.bin", ::getpid());  // tests run side by side
  const std::array<float, 4> added = {-70000, 0, 0, 0};
  std::ofstream(folder / name, std::ios::binary)
      .write(reinterpret_cast<const char*>(added.data()), sizeof(added));  // NOLINT(*-reinterpret-cast)
  auto model = ParseTextGraph(TextWith("const mask f32[1,1,1,4] = 0 0 0 0"));
  ASSERT_TRUE(model.ok());
  auto& tensor = *model->mutable_graph()->mutable_initializer(0);
  tensor.clear_raw_data();
  tensor.clear_float_data();
  tensor.set_data_location(onnx::TensorProto::EXTERNAL);
  auto& location = *tensor.add_external_data();
  location.set_key("location");
  location.set_value(name);
  auto graph = Graph::Make(*std::move(model), folder);
  ASSERT_TRUE(graph.ok());
  const auto mask = ReadMask(*graph, "mask");
  ASSERT_TRUE(mask.ok()) << mask.status().message();
  EXPECT_EQ(mask->window, 3);
  std::filesystem::remove(folder / name);
}

}  // namespace
}  // namespace kvshare::graph
