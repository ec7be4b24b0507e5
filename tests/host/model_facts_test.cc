#include "host/model_facts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvshare/doctor.h"

namespace kvshare::host {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;

const std::string kFile = "/proc/self/exe";  // any file will do for a library

Inspection Model(LayerForm form, std::vector<std::string> imports) {
  Inspection inspection;
  inspection.layers.emplace_back();
  inspection.layers.front().form = form;
  inspection.imports = std::move(imports);
  return inspection;
}

RunOptions Options(Via via, SessionEntries entries = {}) {
  return {.via = via, .library = kFile, .entries = std::move(entries), .extents = {}};
}

TEST(SetupFor, RegistersTheLibraryWhereItIsNeeded) {
  const Inspection plain = Model(LayerForm::kGroupQueryAttention, {"", "com.microsoft"});
  const Inspection rewritten = Model(LayerForm::kGroupQueryAttention, {"", "kvshare"});
  EXPECT_EQ(SetupFor(plain, Options(Via::kAsNeeded))->library, "");
  EXPECT_EQ(SetupFor(rewritten, Options(Via::kAsNeeded))->library, kFile);
  EXPECT_EQ(SetupFor(plain, Options(Via::kAsNeeded, {{"kvshare.drop_in", "1"}}))->library, kFile);
  EXPECT_EQ(SetupFor(plain, Options(Via::kAsNeeded, {{"session.x", "1"}}))->library, "");
  EXPECT_EQ(SetupFor(plain, Options(Via::kOps))->library, kFile);
  EXPECT_TRUE(SetupFor(plain, Options(Via::kOps))->imports_microsoft);
  EXPECT_FALSE(SetupFor(rewritten, Options(Via::kOps))->imports_microsoft);
}

TEST(ViaFor, ChoosesWhatSuitsTheModelAndTheHost) {
  const Inspection plain = Model(LayerForm::kGroupQueryAttention, {"", "com.microsoft"});
  const Inspection rewritten = Model(LayerForm::kGroupQueryAttention, {"", "kvshare"});
  const RunOptions none = Options(Via::kAsNeeded);
  for (const char* version : {"1.24.0", "1.32.0", "2.0.0"}) {
    EXPECT_EQ(ViaFor(plain, none, version), Via::kEp) << version;
    EXPECT_EQ(ViaFor(rewritten, none, version), Via::kEp) << version;
  }
  EXPECT_EQ(ViaFor(plain, none, "1.23.2"), Via::kDropIn);
  EXPECT_EQ(ViaFor(rewritten, none, "1.23.2"), Via::kOps);
  EXPECT_EQ(ViaFor(plain, Options(Via::kAsNeeded, {{"kvshare.drop_in", "gqa"}}), "1.32.0"), Via::kOps);
  EXPECT_EQ(ViaFor(plain, Options(Via::kOps), "1.32.0"), Via::kOps);
}

TEST(SetupFor, AnExecutionProviderIsNoOperatorLibrary) {
  const auto setup = SetupFor(Model(LayerForm::kAttention, {""}), Options(Via::kEp));
  EXPECT_EQ(setup->library, "");
  EXPECT_EQ(setup->provider, kFile);
  EXPECT_THAT(setup->entries, IsEmpty());
}

TEST(SetupFor, DropInReplacesWhatTheModelHas) {
  const Inspection gqa = Model(LayerForm::kGroupQueryAttention, {"com.microsoft"});
  const Inspection attention = Model(LayerForm::kAttention, {""});
  EXPECT_THAT(SetupFor(gqa, Options(Via::kDropIn))->entries, ElementsAre(Pair("kvshare.drop_in", "1")));
  EXPECT_THAT(SetupFor(attention, Options(Via::kDropIn, {{"a", "b"}}))->entries,
              ElementsAre(Pair("a", "b"), Pair("kvshare.drop_in", "attention")));
  EXPECT_EQ(SetupFor(gqa, Options(Via::kDropIn, {{"kvshare.drop_in", "gqa"}})).status().message(),
            "option 'via' = 'dropin' sets session entry kvshare.drop_in itself, and it is given as 'gqa'; needs one of "
            "the two");
}

TEST(DropInFor, ReplacesNothingForLayersThatAreKvsharesAlready) {
  Inspection model = Model(LayerForm::kGroupQueryAttention, {"", "kvshare"});
  model.layers.front().domain = "kvshare";
  EXPECT_EQ(DropInFor(model), "");
  EXPECT_THAT(SetupFor(model, Options(Via::kDropIn))->entries, IsEmpty());
  model.layers.emplace_back().form = LayerForm::kAttention;
  EXPECT_EQ(DropInFor(model), "attention");
  model.layers.emplace_back().domain = "com.microsoft";
  EXPECT_EQ(DropInFor(model), "1");
  EXPECT_EQ(DropInFor(Inspection()), "");
}

TEST(SetupFor, AMissingLibraryIsNamed) {
  RunOptions options = Options(Via::kOps);
  options.library = "no/such.so";
  const auto setup = SetupFor(Inspection(), options);
  EXPECT_EQ(setup.status().code(), StatusCode::kRefused);
  EXPECT_EQ(setup.status().message(), "no library at 'no/such.so'; name libkvshare_ort.so with option 'library'");
}

}  // namespace
}  // namespace kvshare::host
