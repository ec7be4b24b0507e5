// Layers whose caches would become compact, beside others that see the padding between their rows.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/graph/rewrite_text.h"
#include "tests/graph/two_layers.h"

namespace kvshare::graph {
namespace {

constexpr std::string_view kTarget = "; needs option 'target' = 'kvshare-attention', which keeps padding";

// Layer 0 owns a cache, layer 1 borrows it, both by Attention that hides the padding; then `more`, whose last line
// makes logits of out1.
std::string Then(const std::string& more) {
  const std::string own =
      "out0, present_k, present_v = Attention(q0, k0, k0, bias, past_k, past_v) {q_num_heads=4, kv_num_heads=1, "
      "scale=1.0, is_causal=1}";
  return TwoLayersWith("logits",
                       "value out1 f32[B,S,32]\nvalue k0 f32[B,S,8]\ninput past_k2 f32[B,1,P,8]\ninput past_v2 "
                       "f32[B,1,P,8]\noutput present_k2 f32[B,1,T,8]\n"
                       "output present_v2 f32[B,1,T,8]\n" +
                           more + "\nlogits = Identity(out2)",
                       TwoLayersWith("out0", own));
}

std::string ThenAttention(const std::string& key, const std::string& mask, const std::string& attributes = "") {
  return "out2, present_k2, present_v2 = Attention(out1, " + key + ", " + key + ", " + mask +
         ", past_k2, past_v2) {q_num_heads=4, kv_num_heads=1, is_causal=1" + attributes + "}";
}

std::string ThenGqa(const std::string& seqlens) {
  return "k2 = MatMul(out1, projection)\nout2, present_k2, present_v2 = com.microsoft.GroupQueryAttention(out1, k2, "
         "k2, "
         "past_k2, past_v2, " +
         seqlens + ", total) {num_heads=4, kv_num_heads=1}";
}

const std::string kKey = "k2 = MatMul(out1, projection)\n";  // NOLINT(cert-err58-cpp)

TEST(Padding, IsKeptWhereAnotherLayerSeesIt) {
  const std::string seen =
      "padding-is-seen: its cache would be compact, and layer 2 is not known to hide the padding: ";
  for (const auto& [more, why] : std::vector<std::pair<std::string, std::string>>{
           {kKey + ThenAttention("k2", "_"), "it does not hide what 'attention_mask' does"},
           {kKey + "input free f32[B,1,S,T]\n" + ThenAttention("k2", "free"),
            "mask: 'free' is given from outside; its meaning is not known"},
           {kKey + ThenAttention("k2", "bias", ", softmax_precision=10"), "has softmax_precision 10; needs 1 (float)"},
           // Not made of what the layers make, but its mask would have other columns.
           {"twice = Add(bias, bias)\n" + ThenAttention("k0", "twice"),
            "mask: Add 'twice' is not one of And, comparisons of positions, Expand and padding as exporters write "
            "them"},
           {"input given i32[B]\n" + ThenGqa("given"), "its seqlens_k is not known to count 'attention_mask'"},
           {"out2 = Attention(out1, out1, out1) {q_num_heads=4, kv_num_heads=4}\n"
            "present_k2 = Identity(past_k2)\npresent_v2 = Identity(past_v2)",
            "has no mask; needs one that hides the padding"}}) {
    for (const Target target : {Target::kKvshare, Target::kOrt}) {
      const Rewritten result = RewriteText(Then(more), To(target));
      EXPECT_EQ(result.CodedDeclineOf("own-attention"), seen + why + std::string(kTarget)) << more;
    }
  }
}

TEST(Padding, IsKeptBesideALayerThatKeepsItsRows) {
  const std::string stays = "input past_odd f32[B,1,P,16]\nodd = Concat(k2, k2) {axis=-1}\n";
  const std::string text =
      Then(kKey + stays +
           "out2, present_k2, present_v2 = Attention(out1, k2, odd, bias, past_k2, past_odd) {q_num_heads=4, "
           "kv_num_heads=1, is_causal=1}");
  EXPECT_EQ(RewriteText(text, To(Target::kKvshare)).CodedDeclineOf("own-attention"),
            "padding-is-seen: its cache would be compact, and that of layer 2 keeps padding" + std::string(kTarget));
}

TEST(Padding, IsKeptBesideAttentionOfSingleOperators) {
  const std::string text = Then(
      "turned = Transpose(out1) {perm=[0,2,1]}\nscores = MatMul(out1, turned)\nweights = Softmax(scores)\n"
      "out2 = MatMul(weights, out1)\npresent_k2 = Identity(past_k2)\npresent_v2 = Identity(past_v2)");
  EXPECT_EQ(RewriteText(text, To(Target::kKvshare)).CodedDeclineOf("own-attention"),
            "padding-is-seen: its cache would be compact, and Softmax 'weights' is not known to hide the padding" +
                std::string(kTarget));
}

TEST(Padding, IsLostWhereAllLayersHideItOrSeeNothingOfIt) {
  for (const std::string& more : {kKey + ThenAttention("k2", "bias"), ThenGqa("seqlens"), ThenAttention("k0", "_")}) {
    const Rewritten result = RewriteText(Then(more), To(Target::kKvshare));
    EXPECT_EQ(result.DeclineOf("own-attention"), "") << more;
    EXPECT_THAT(result.report.notes, testing::Contains(testing::HasSubstr("changed contract: caches are compact")));
  }
}

}  // namespace
}  // namespace kvshare::graph
