// Upstream's shared form: layers that borrow through a key of length 0, and presents that nobody reads.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/graph/rewrite_text.h"
#include "tests/graph/two_layers.h"

namespace kvshare::graph {
namespace {

TEST(SharedGqa, KeepsAWindowOfItsOwnOverAWholeCacheOnly) {
  std::string text = UpstreamsForm();
  text.replace(text.find("local_window_size=4", text.find("out1, ")), 19, "local_window_size=5");
  EXPECT_THAT(TextAfter(text, To(Target::kKvshare)), testing::HasSubstr("local_window_size=5"));
  text.replace(text.find("local_window_size=4"), 19, "sliding_window_cache=1, local_window_size=4");
  EXPECT_EQ(RewriteText(text, To(Target::kKvshare)).DeclineOf("shared-gqa"),
            "source layer 0 has window 4, shared layer has 5");
}

// As a drafter borrows from the caches of its target.
TEST(SharedGqa, MayBorrowFromAGraphInput) {
  std::string text = UpstreamsForm();
  const size_t shared = text.find("out1, ");
  text.replace(text.find("present_k, present_v", shared), 20, "past_k, past_v");
  const std::string after = TextAfter(text, To(Target::kKvshare));
  EXPECT_THAT(after, testing::HasSubstr("past_k, past_v) {num_heads=4"));
  EXPECT_THAT(after, testing::HasSubstr("out1 = kvshare.GroupQueryAttention"));
}

TEST(SharedGqa, SaysWhyItStays) {
  const auto reason = [](std::string_view from, std::string_view to) {
    std::string text = UpstreamsForm();
    text.replace(text.find(from, text.find("out1, ")), from.size(), to);
    return RewriteText(text, To(Target::kKvshare)).DeclineOf("shared-gqa");
  };
  EXPECT_EQ(reason("local_window_size=4", "local_window_size=0"), "has local_window_size 0; needs -1 or at least 1");
  EXPECT_EQ(reason("kv_num_heads=1", "kv_num_heads=2"), "source layer 0 has 1 key-value heads, shared layer has 2");
}

TEST(SharedGqa, AConstantEmptyKeyMakesWayInEachTarget) {
  std::string text = UpstreamsForm();
  const size_t begin = text.find("empty = ");
  text.replace(begin, text.find('\n', begin) - begin, "const empty f32[1,0,8] = 0");
  EXPECT_THAT(TextAfter(text, To(Target::kKvshare)),
              testing::HasSubstr("out1 = kvshare.GroupQueryAttention(rotated, _, _, _, _, seqlens2, total"));
  const std::string ort = TextAfter(text, To(Target::kOrt));
  EXPECT_THAT(ort, testing::HasSubstr("out1_empty_kv = ConstantOfShape(out1_empty_kv_shape)"));
  EXPECT_THAT(ort, testing::HasSubstr("out1 = com.microsoft.GroupQueryAttention(rotated, out1_empty_kv, out1_empty_kv, "
                                      "present_k, present_v, seqlens2, total)"));
  EXPECT_THAT(RewriteText(text, To(Target::kOrt)).report.notes,
              testing::Contains("repaired: the empty key was a constant, which fixed the batch to 1; any batch fits"));
}

TEST(UnnamePresents, SaysWhyTheyStay) {
  RewriteOptions skipping = To(Target::kKvshare);
  skipping.skip = {"shared-gqa"};
  EXPECT_EQ(RewriteText(UpstreamsForm(), skipping).DeclineOf("unname-presents"),
            "is still com.microsoft's, which ONNX Runtime 1.27 to 1.30 crash on without presents");
  RewriteOptions old = To(Target::kOrt);
  old.min_ort = "1.27";
  EXPECT_EQ(RewriteText(UpstreamsForm(), old).DeclineOf("unname-presents"),
            "presents stay named (and copied) for option 'min_ort' = '1.27': ONNX Runtime 1.27 to 1.30 crash without");
  const std::string read = UpstreamsForm("spy = Identity(own_k)\noutput spied f32[B,1,T,8]\nspied = Identity(spy)");
  EXPECT_EQ(RewriteText(read, To(Target::kOrt)).DeclineOf("unname-presents"), "present 'own_k' is read");
  std::string scored = UpstreamsForm();
  scored.replace(scored.find("out1, own_k, own_v"), 18, "out1, own_k, own_v, scores");
  EXPECT_EQ(RewriteText(scored, To(Target::kOrt)).DeclineOf("unname-presents"), "has output_qk");
}

TEST(UnnamePresents, ReleasesThatCrashWithoutPresentsGetNames) {
  RewriteOptions named = To(Target::kOrt);
  named.min_ort = "1.27";
  const std::string first = TextAfter(kTwoLayers, named);
  EXPECT_THAT(first, testing::HasSubstr("out1, out1_present_key, out1_present_value = com.microsoft"));
}

TEST(UnnamePresents, OnlyReleasesFrom131OnLoadThemUnnamed) {
  RewriteOptions options = To(Target::kOrt);
  for (const auto& [release, named] : {std::pair{"1.30", true}, {"1.30.1", true}, {"1.31", false}, {"1.32", false}}) {
    options.min_ort = release;
    EXPECT_EQ(TextAfter(kTwoLayers, options).find("out1_present_key") != std::string::npos, named) << release;
  }
}

}  // namespace
}  // namespace kvshare::graph
