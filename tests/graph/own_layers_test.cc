// Rules for layers that own their keys: what they turn, and why a layer stays as it is.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <tuple>

#include "tests/graph/rewrite_text.h"
#include "tests/graph/torch_layers.h"
#include "tests/graph/two_layers.h"

namespace kvshare::graph {
namespace {

// Both layers Attention: the default form of exporters.
std::string AllAttention(std::string_view own =
                             "out0, present_k, present_v = Attention(q0, k0, k0, bias, past_k, "
                             "past_v) {q_num_heads=4, kv_num_heads=1, scale=1.0, is_causal=1}",
                         std::string_view from = kTwoLayers) {
  return TwoLayersWith("out0", own, from);
}

TEST(OwnAttention, TurnsWithItsBorrowers) {
  for (const auto& [target, domain, borrower] :
       {std::tuple{Target::kKvshare, "kvshare", "out1 = kvshare.GroupQueryAttention(rotated, _, _, _, _"},
        std::tuple{Target::kOrt, "com.microsoft",
                   "out1 = com.microsoft.GroupQueryAttention(rotated, out1_empty_kv, out1_empty_kv, present_k, "
                   "present_v"}}) {
    const std::string lengths = ", attention_mask_seqlens_k, attention_mask_total";
    const std::string after = TextAfter(AllAttention(), To(target));
    EXPECT_THAT(after, testing::HasSubstr("out0, present_k, present_v = " + std::string(domain) +
                                          ".GroupQueryAttention(q0, k0, k0, past_k, past_v" + lengths +
                                          ") {num_heads=4, kv_num_heads=1, do_rotary=0, local_window_size=4, "
                                          "scale=1.0}"));
    EXPECT_THAT(after, testing::HasSubstr(borrower + lengths));
    EXPECT_THAT(after, testing::Not(testing::HasSubstr("CumSum")));
    EXPECT_THAT(RewriteText(AllAttention(), To(target)).report.notes,
                testing::Contains(testing::HasSubstr("changed contract: caches are compact")));
  }
}

TEST(OwnAttention, SaysWhereTokensAreNumberedByTheRowsOfCaches) {
  const std::string counting =
      "numbers = Cast(at) {to=1}\nnumbers3 = Unsqueeze(numbers, middle)\nturned = Add(hidden, numbers3)\n"
      "q0 = Transpose(turned) {perm=[0,2,1,3]}";
  const auto counts = testing::Contains(testing::HasSubstr("this model numbers tokens by the rows of its caches"));
  EXPECT_THAT(RewriteText(TorchLayersWith("q0", counting), To(Target::kKvshare)).report.notes, counts);
  EXPECT_THAT(RewriteText(std::string(kTorchLayers), To(Target::kKvshare)).report.notes, testing::Not(counts));
}

// Its borrower would stay Attention, with a column of its mask for each padded key.
TEST(OwnAttention, StaysBesideABorrowerThatIsNotKnownToHideTheSamePadding) {
  const std::string prefix =
      "borrower-keeps-padding: layer 1 borrows its cache, which would be compact, and is not known to hide its "
      "padding: ";
  const auto out1 = [](const std::string& mask) {
    return "out1 = Attention(rotated, k1, v1, " + mask + ") {q_num_heads=4, kv_num_heads=1, is_causal=1}";
  };
  const std::string window = "window3 = Where(visible, zero, hidden)\nwindow4 = Unsqueeze(window3, one)\n";
  for (const auto& [line, reason] : {std::pair{"input free f32[B,1,S,T]\n" + out1("free"), "mask: "},
                                     std::pair{window + out1("window4"), "its mask does not hide the padding"},
                                     std::pair{out1("_"), "has no mask; needs one that hides the padding"}}) {
    const std::string text = TwoLayersWith("out1", line, AllAttention());
    for (const Target target : {Target::kKvshare, Target::kOrt}) {
      const Rewritten result = RewriteText(text, To(target));
      EXPECT_THAT(result.CodedDeclineOf("own-attention"), testing::StartsWith(prefix + reason));
      EXPECT_TRUE(result.before == result.after) << line;
    }
  }
}

// Without a mask nothing else tells that both are those of this step.
TEST(OwnAttention, StaysWhereItsKeyMayHaveOtherTokensThanItsQuery) {
  const std::string own =
      "input fewer f32[B,U,8]\nout0, present_k, present_v = Attention(q0, fewer, fewer, _, past_k, past_v) "
      "{q_num_heads=4, kv_num_heads=1, is_causal=1}";
  for (const Target target : {Target::kKvshare, Target::kOrt})
    EXPECT_EQ(RewriteText(AllAttention(own), To(target)).CodedDeclineOf("own-attention"),
              "key-not-of-this-step: its key is not known to have as many tokens as its query");
}

// ONNX Runtime's GroupQueryAttention takes several new tokens after a past for batch 1 only.
TEST(OwnAttention, StaysForOrtWhereEveryStepHasSeveralTokensOfSeveralSequences) {
  const auto fixed = [](const std::string& batch, const std::string& tokens) {
    return AllAttention("input own_q f32[" + batch + "," + tokens + ",32]\ninput own_k f32[" + batch + "," + tokens +
                        ",8]\nout0, present_k, present_v = Attention(own_q, own_k, own_k, _, past_k, past_v) "
                        "{q_num_heads=4, kv_num_heads=1, is_causal=1}");
  };
  const std::string note = "ONNX Runtime's GroupQueryAttention takes several new tokens after a past for batch 1 only";
  EXPECT_EQ(RewriteText(fixed("2", "3"), To(Target::kOrt)).CodedDeclineOf("own-attention"),
            "batch-of-tokens: has 3 new tokens and batch 2; " + note);
  EXPECT_THAT(TextAfter(fixed("2", "3"), To(Target::kKvshare)),
              testing::HasSubstr("kvshare.GroupQueryAttention(own_q"));
  for (const auto& [batch, tokens, notes] :
       {std::tuple{"2", "S", 1}, std::tuple{"B", "3", 1}, std::tuple{"2", "1", 0}, std::tuple{"1", "3", 0}}) {
    const std::string text = fixed(batch, tokens);
    EXPECT_THAT(TextAfter(text, To(Target::kOrt)), testing::HasSubstr("com.microsoft.GroupQueryAttention(own_q"));
    EXPECT_EQ(std::ranges::count(RewriteText(text, To(Target::kOrt)).report.notes, note), notes) << batch << tokens;
  }
}

// As of an encoder, or of a decoder that takes prompts alone.
TEST(OwnAttention, SaysThatALayerWithoutACacheStays) {
  const std::string encoder =
      "out0 = Attention(q0, k0, k0) {q_num_heads=4, kv_num_heads=1}\n"
      "present_k = Identity(past_k)\npresent_v = Identity(past_v)";
  for (const Target target : {Target::kKvshare, Target::kOrt}) {
    const Rewritten result =
        RewriteText(TwoLayersWith("out1", "out1 = Identity(out0)", AllAttention(encoder)), To(target));
    EXPECT_EQ(result.CodedDeclineOf("own-attention"),
              "no-cache: keeps no cache, so there is none to read in place; needs a past and a present");
    EXPECT_THAT(result.report.notes, testing::ElementsAre(testing::HasSubstr("nothing changed: 0 of 1")));
  }
}

// Rows of a compact cache are no columns of a mask: its padding is gone from between them.
TEST(OwnAttention, StaysWhereOthersReadItsCache) {
  const std::string attention =
      "out1 = Attention(rotated, k1, v1, bias) {q_num_heads=4, kv_num_heads=1, is_causal=1}\n";
  const auto flipped = [](const std::string& of, const std::string& axis) {
    return "const by i64[1] = -1\nconst to i64[1] = -9223372036854775807\nconst along i64[1] = " + axis +
           "\nodd = Slice(" + of + ", by, to, along, by)\noutput odd f32[w,x,y,z]\n";
  };
  for (const auto& [line, why] :
       {std::pair{flipped("present_k", "2") + attention,
                  "its cache would be compact, and 'present_k' is read by Slice 'odd'"},
        std::pair{flipped("present_v", "2") + attention,
                  "its cache would be compact, and 'present_v' is read by Slice 'odd'"},
        std::pair{flipped("kt", "1") + attention, "its cache would be compact, and 'kt' is read by Slice 'odd'"},
        std::pair{std::string("out1 = Attention(kt, k1, v1, bias) {q_num_heads=1, kv_num_heads=1, is_causal=1}"),
                  "its cache would be compact, and 'kt' is read by Attention 'out1'"}})
    for (const Target target : {Target::kKvshare, Target::kOrt}) {
      const Rewritten result = RewriteText(TwoLayersWith("out1", line, AllAttention()), To(target));
      EXPECT_EQ(result.CodedDeclineOf("own-attention"), std::string("value-is-read: ") + why);
    }
  // Extents do not tell where padding is.
  const std::string extents = "extents1 = Shape(present_k)\noutput extents1 i64[4]\n" + attention;
  EXPECT_EQ(
      RewriteText(TwoLayersWith("out1", extents, AllAttention()), To(Target::kKvshare)).DeclineOf("own-attention"), "");
}

TEST(OwnAttention, LengthsOfAMaskOfInt32AreCountedInInt64) {
  std::string text = AllAttention();
  text.replace(text.find("attention_mask i64"), 18, "attention_mask i32");
  const std::string after = TextAfter(text, To(Target::kKvshare));
  EXPECT_THAT(after, testing::HasSubstr("attention_mask_int64 = Cast(attention_mask) {to=7}\n"
                                        "attention_mask_ones = ReduceSum(attention_mask_int64, attention_mask_one)"));
  EXPECT_THAT(after, testing::Not(testing::HasSubstr("CumSum")));
}

// An earlier node counts its seqlens_k from one mask and its total from another: not the lengths of either.
TEST(OwnAttention, TakesLengthsOnlyWhereBothCountItsMask) {
  const std::string earlier =
      "input other_mask i64[B,T]\noutput early f32[B,S,32]\nother_extents = Shape(other_mask)\n"
      "other_total64 = Gather(other_extents, one)\nother_total = Cast(other_total64) {to=6}\n"
      "early, early_k, early_v = com.microsoft.GroupQueryAttention(q0, k0, k0, past_k, past_v, seqlens, other_total) "
      "{num_heads=4, kv_num_heads=1}\n";
  const std::string own =
      "out0, present_k, present_v = Attention(q0, k0, k0, bias, past_k, past_v) {q_num_heads=4, kv_num_heads=1, "
      "is_causal=1}";
  EXPECT_THAT(TextAfter(AllAttention(earlier + own), To(Target::kKvshare)),
              testing::HasSubstr("GroupQueryAttention(q0, k0, k0, past_k, past_v, attention_mask_seqlens_k, "
                                 "attention_mask_total)"));
  const std::string same = earlier.substr(0, earlier.find("seqlens, other_total")) + "seqlens, total" +
                           earlier.substr(earlier.find("seqlens, other_total") + 20);
  EXPECT_THAT(TextAfter(AllAttention(same + own), To(Target::kKvshare)),
              testing::HasSubstr("GroupQueryAttention(q0, k0, k0, past_k, past_v, seqlens, total)"));
}

TEST(OwnKeyMask, KeepsThePastAndNeedsNoMask) {
  EXPECT_THAT(TextAfter(AllAttention(), To(Target::kKvshareAttention)),
              testing::HasSubstr("out0, present_k, present_v = kvshare.Attention(q0, k0, k0, _, past_k, past_v, _, "
                                 "attention_mask)"));
}

TEST(OwnAttention, StaysWhereOnlyTheBorrowerIsToTurn) {
  RewriteOptions borrowers = To(Target::kKvshareAttention);
  borrowers.keep_own = true;
  const std::string after = TextAfter(AllAttention(), borrowers);
  EXPECT_THAT(after, testing::HasSubstr("out0, present_k, present_v = Attention(q0, k0, k0, bias, past_k, past_v)"));
  EXPECT_THAT(after, testing::HasSubstr("out1 = kvshare.Attention(rotated, present_k, present_v, _, _, _, _, "
                                        "attention_mask)"));
  RewriteOptions keep = To(Target::kKvshare);
  keep.keep_own = true;
  const Rewritten kept = RewriteText(AllAttention(), keep);
  EXPECT_EQ(
      kept.DeclineOf("shared-attention"),
      "source layer 0 stayed Attention, whose cache may have gaps where GroupQueryAttention counts lengths; needs "
      "GroupQueryAttention there, or option 'target' = 'kvshare-attention'");
  EXPECT_EQ(kept.before, kept.after);
}

TEST(OwnAttention, SaysWhyItStays) {
  const auto reason = [](const std::string& text, Target target = Target::kKvshare) {
    const Rewritten result = RewriteText(text, To(target));
    EXPECT_EQ(result.before, result.after);
    return result.DeclineOf("own-attention");
  };
  EXPECT_EQ(reason(AllAttention("out0, present_k, present_v = Attention(q0, k0, k0, bias, past_k) {q_num_heads=4, "
                                "kv_num_heads=1, is_causal=1}")),
            "has only a part of past and present; needs key and value of both");
  EXPECT_EQ(reason(AllAttention("out0, present_k, present_v, scores = Attention(q0, k0, k0, bias, past_k, past_v) "
                                "{q_num_heads=4, kv_num_heads=1, is_causal=1}")),
            "has qk_matmul_output");
  EXPECT_EQ(reason(AllAttention("out0, present_k, present_v = Attention(q0, k0, k0, bias, past_k, past_v) "
                                "{q_num_heads=4, kv_num_heads=1, is_causal=1, softmax_precision=10}")),
            "has softmax_precision 10; needs 1 (float)");
  EXPECT_EQ(reason(AllAttention("out0, present_k, present_v = Attention(q0, given, given, bias, past_k, past_v) "
                                "{q_num_heads=4, kv_num_heads=1, is_causal=1}\ninput given f32[B,N,8]")),
            "its mask takes the number of queries from 'input_ids', which the key does not depend on");
  EXPECT_EQ(
      reason(AllAttention(
          "present_k = Concat(past_k, k0) {axis=2}\npresent_v = Concat(past_v, k0) {axis=2}\n"
          "out0 = Attention(q0, present_k, present_v, bias) {q_num_heads=4, kv_num_heads=1, is_causal=1}")),
      "takes keys made outside of it with a mask that numbers them by the ones in 'attention_mask'; needs a past");
  const std::string own = AllAttention();
  const std::string line = own.substr(own.find("out0, "), own.find('\n', own.find("out0, ")) - own.find("out0, "));
  EXPECT_EQ(reason(AllAttention(line, WithText(kTwoLayers, "f32[B,1,P,8]", "i32[B,1,P,8]"))),
            "the element type of 'past_k' is 6; needs float, float16 or bfloat16");
  EXPECT_EQ(reason(AllAttention(line, WithText(kTwoLayers, "past_v f32[B,1,P,8]", "past_v f32[B,1,P,16]"))),
            "'past_k' has head size 8, 'past_v' has 16; GroupQueryAttention needs one for both");
  EXPECT_EQ(reason(AllAttention(line, WithText(kTwoLayers, "past_v f32[B,1,P,8]", "past_v f32[B,1,P,D]"))),
            "the head sizes of 'past_k' and 'past_v' are not known to be one");
  EXPECT_EQ(reason(AllAttention(line, WithText(kTwoLayers, "f32[B,1,P,8]", "f32[B,1,P,12]")), Target::kOrt),
            "has head size 12; ONNX Runtime's GroupQueryAttention needs a multiple of 8");
}

TEST(OwnLayers, SayWhyTheyStay) {
  const std::string unshared = TwoLayersWith("near", "near = Equal(distance, window)");
  EXPECT_EQ(RewriteText(unshared, To(Target::kKvshare)).DeclineOf("own-layers"),
            "no shared layer of this model could be converted, so its own layers stay as they are");
  const std::string alone = TwoLayersWith("out1", "out1 = Identity(out0)");
  EXPECT_EQ(RewriteText(TwoLayersWith("out0",
                                      "out0, present_k, present_v = com.microsoft.GroupQueryAttention(q0, k0, k0, "
                                      "past_k, past_v, seqlens, total) {num_heads=4, kv_num_heads=1, "
                                      "local_window_size=0}",
                                      alone),
                        To(Target::kKvshare))
                .DeclineOf("own-layers"),
            "has local_window_size 0; needs -1 or at least 1");
  EXPECT_EQ(RewriteText(TwoLayersWith("out0",
                                      "out0, present_k, present_v = com.microsoft.GroupQueryAttention(q0, k0, k0, "
                                      "past_k, past_v, seqlens, total, _, _, _, _, _, _, _, _, _, _, q0) {num_heads=4, "
                                      "kv_num_heads=1}",
                                      alone),
                        To(Target::kKvshare))
                .DeclineOf("own-layers"),
            "has 18 inputs; kvshare knows 17");
}

}  // namespace
}  // namespace kvshare::graph
