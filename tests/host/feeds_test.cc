#include "host/feeds.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "host/decoder.h"

namespace kvshare::host {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

using Extents = std::vector<std::string>;  // "8" or a name

ValueInfo Value(const std::string& name, DType type, const Extents& extents) {
  ValueInfo value{.name = name, .type = type, .shape = {}, .symbols = {}};
  for (const std::string& extent : extents) {
    const bool fixed = !extent.empty() && extent.find_first_not_of("0123456789") == std::string::npos;
    value.shape.push_back(fixed ? std::stoll(extent) : -1);
    value.symbols.push_back(fixed ? "" : extent);
  }
  return value;
}

std::vector<double> All(const Tensor& tensor) {
  std::vector<double> values;
  for (int64_t i = 0; i < tensor.Elements(); ++i) values.push_back(tensor.At(i));
  return values;
}

// What a decode step behind 3 tokens is fed, of the inputs that `step` does not give.
NamedTensors Decoded(const std::vector<ValueInfo>& inputs) {
  const auto feeds = Feeds::Create({inputs, {}}, {});
  EXPECT_TRUE(feeds.ok()) << feeds.status().message();
  const auto made = feeds->Make({.batch = 1, .tokens = 2, .past = 3, .given = {}}, 1);
  EXPECT_TRUE(made.ok()) << made.status().message();
  return *made;
}

TEST(Feeds, AMaskHasPastAndNewTokensInAnyTypeThatModelsTake) {
  for (const DType type : {DType::kI64, DType::kI32, DType::kBool, DType::kF32, DType::kF16, DType::kBF16}) {
    const Tensor mask = Decoded({Value("attention_mask", type, {"B", "T"})}).at("attention_mask");
    EXPECT_EQ(mask.type, type);
    EXPECT_THAT(mask.shape, ElementsAre(1, 5));
    EXPECT_THAT(All(mask), Each(1)) << NameOf(type);
  }
}

TEST(Feeds, WhatIsGivenHasTheShapeAndTheKindOfTheInput) {
  const auto feeds = Feeds::Create(
      {{Value("input_ids", DType::kI32, {"B", "S"}), Value("inputs_embeds", DType::kF16, {"B", "S", "D"})}, {}}, {});
  ASSERT_TRUE(feeds.ok()) << feeds.status().message();
  const auto made = [&](const std::string& name, const Tensor& given) {
    const auto values = feeds->Make({.batch = 1, .tokens = 2, .past = 0, .given = {{name, given}}}, 1);
    return values.ok() ? NameOf(values->at(name).type) : values.status().message();
  };
  const auto ids = [](DType type, const std::vector<int64_t>& shape, const std::vector<int64_t>& values) {
    return Tensor::Integers(type, shape, values);
  };
  EXPECT_EQ(made("input_ids", ids(DType::kI64, {1, 2}, {3, 4})), "int32");
  EXPECT_EQ(made("input_ids", ids(DType::kI64, {1, 2}, {3, int64_t{1} << 31})),
            "input 'input_ids' is given with 2147483648; needs numbers of int32");
  EXPECT_EQ(made("input_ids", ids(DType::kF32, {1, 2}, {3, 4})), "input 'input_ids' is given as f32; needs int32");
  EXPECT_EQ(made("input_ids", ids(DType::kI64, {2, 2}, {1, 2, 3, 4})),
            "input 'input_ids' is given with shape [2, 2]; needs [1, 2]");
  EXPECT_EQ(made("inputs_embeds", Tensor::Zeros(DType::kF32, {1, 2, 64})), "f16") << "nothing tells D";
  EXPECT_EQ(made("inputs_embeds", Tensor::Zeros(DType::kF32, {1, 3, 64})),
            "input 'inputs_embeds' is given with shape [1, 3, 64]; needs [1, 2, any]");
}

TEST(Feeds, AMaskOfFixedLengthHidesWhatIsNotThereYet) {
  const Tensor mask = Decoded({Value("attention_mask", DType::kI64, {"1", "7"})}).at("attention_mask");
  EXPECT_THAT(All(mask), ElementsAre(1, 1, 1, 1, 1, 0, 0));
}

TEST(Feeds, PositionsGoOnBehindThePast) {
  for (const DType type : {DType::kI64, DType::kI32})
    EXPECT_THAT(All(Decoded({Value("position_ids", type, {"B", "S"})}).at("position_ids")), ElementsAre(3, 4));
  EXPECT_THAT(All(Decoded({Value("cache_position", DType::kI64, {"S"})}).at("cache_position")), ElementsAre(3, 4));
  const Tensor three = Decoded({Value("position_ids", DType::kI64, {"3", "B", "S"})}).at("position_ids");
  EXPECT_THAT(three.shape, ElementsAre(3, 1, 2));
  EXPECT_THAT(All(three), ElementsAre(3, 4, 3, 4, 3, 4));
  EXPECT_THAT(Decoded({Value("position_ids", DType::kI64, {"axes", "B", "S"})}).at("position_ids").shape,
              ElementsAre(3, 1, 2));
}

TEST(Feeds, CountsAreThoseOfTheStep) {
  const NamedTensors made =
      Decoded({Value("num_logits_to_keep", DType::kI64, {}), Value("token_type_ids", DType::kI64, {"B", "S"}),
               Value("past_sequence_length", DType::kI32, {}), Value("total_sequence_length", DType::kI32, {"1"}),
               Value("seqlens_k", DType::kI32, {"B"}), Value("use_cache_branch", DType::kBool, {"1"})});
  EXPECT_THAT(All(made.at("num_logits_to_keep")), ElementsAre(0));  // 0 keeps all
  EXPECT_THAT(All(made.at("token_type_ids")), ElementsAre(0, 0));
  EXPECT_THAT(All(made.at("past_sequence_length")), ElementsAre(3));
  EXPECT_THAT(All(made.at("total_sequence_length")), ElementsAre(5));
  EXPECT_THAT(All(made.at("seqlens_k")), ElementsAre(4));
  EXPECT_THAT(All(made.at("use_cache_branch")), ElementsAre(1));
}

TEST(Feeds, OtherInputsHaveTheExtentsThatTheirNamesMean) {
  const std::vector<ValueInfo> inputs = {Value("inputs_embeds", DType::kF32, {"batch", "new", "4"}),
                                         Value("attention_mask", DType::kI64, {"batch", "all"}),
                                         Value("shared_kv.key", DType::kF16, {"batch", "2", "all", "8"}),
                                         Value("image", DType::kF32, {"batch", "new", "patches"})};
  const auto feeds = Feeds::Create({inputs, {}}, {});
  ASSERT_TRUE(feeds.ok()) << feeds.status().message();
  const auto made = feeds->Make({.batch = 1, .tokens = 2, .past = 3, .given = {}}, 1);
  ASSERT_TRUE(made.ok()) << made.status().message();
  EXPECT_THAT(made->at("shared_kv.key").shape, ElementsAre(1, 2, 5, 8));
  EXPECT_THAT(made->at("image").shape, ElementsAre(1, 2, 5));
  EXPECT_THAT(feeds->invented(), ElementsAre("input 'shared_kv.key' (random)", "extent 'patches' (all tokens so far)",
                                             "input 'image' (random)"));
  const auto told = Feeds::Create({inputs, {}}, {.caches = {}, .meanings = {}, .named = {{"patches", 6}}});
  ASSERT_TRUE(told.ok()) << told.status().message();
  EXPECT_THAT(told->Make({.batch = 1, .tokens = 2, .past = 3, .given = {}}, 1)->at("image").shape,
              ElementsAre(1, 2, 6));
}

struct State {
  const char* past;
  const char* present;
  Extents extents;
  std::vector<int64_t> first;  // its shape before the first step
};

class FeedsState : public ::testing::TestWithParam<State> {};

TEST_P(FeedsState, StartsEmptyAndIsPairedWithItsPresent) {
  const State& state = GetParam();
  const Signature signature{{Value(state.past, DType::kF32, state.extents)},
                            {Value(state.present, DType::kF32, state.extents)}};
  const auto feeds = Feeds::Create(signature, {});
  ASSERT_TRUE(feeds.ok()) << feeds.status().message();
  ASSERT_EQ(feeds->all().front().role, Role::kState);
  EXPECT_EQ(feeds->all().front().present, state.present);
  const auto first = feeds->FirstStates({.batch = 2, .tokens = 5, .past = 0, .given = {}});
  ASSERT_TRUE(first.ok()) << first.status().message();
  EXPECT_EQ(first->at(state.past).shape, state.first);
  EXPECT_THAT(All(first->at(state.past)), Each(0));
  EXPECT_THAT(feeds->invented(), IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(
    Exporters, FeedsState,
    ::testing::Values(
        State{"past_key_values.3.key", "present.3.key", {"batch_size", "2", "past_sequence_length", "8"}, {2, 2, 0, 8}},
        State{"past_key_values.3.value", "present.3.value", {"b", "2", "s12", "8"}, {2, 2, 0, 8}},
        State{"past_0", "present_0", {"2", "batch", "4", "past_seq_len", "8"}, {2, 2, 4, 0, 8}},
        State{"past_conv.1", "present_conv.1", {"batch", "16", "3"}, {2, 16, 3}},
        State{"past.1.conv", "present.1.conv", {"batch", "16", "3"}, {2, 16, 3}},
        State{"past_key_values.1.conv_state", "present.1.conv_state", {"batch", "16", "3"}, {2, 16, 3}},
        State{"past_recurrent.1", "present_recurrent.1", {"batch", "4", "8", "8"}, {2, 4, 8, 8}},
        State{"past_key_values.1.recurrent_state", "present.1.recurrent_state", {"B", "4", "8", "8"}, {2, 4, 8, 8}},
        State{"past_ssm.1", "present_ssm.1", {"batch", "4", "8", "16"}, {2, 4, 8, 16}},
        State{"past_key_values.0.key", "present.0.key", {"1", "2", "64", "8"}, {1, 2, 64, 8}}),
    [](const auto& test) { return std::to_string(test.index); });

TEST(Feeds, ACachesNamedExtentsComeFromTheGraphOrTheCaller) {
  const Extents extents = {"batch", "heads", "past", "kv_cache_dim"};
  for (const auto& [type, width] : {std::pair(DType::kF16, 16), std::pair(DType::kI4, 8)}) {
    const Signature signature{{Value("past_key_values.0.key", type, extents)}, {Value("present.0.key", type, extents)}};
    KnownInputs known;
    known.caches["past_key_values.0.key"] = {.heads = 2, .head_size = 16, .rows = 4};
    const auto feeds = Feeds::Create(signature, known);
    ASSERT_TRUE(feeds.ok()) << feeds.status().message();
    EXPECT_THAT(feeds->FirstStates({})->at("past_key_values.0.key").shape, ElementsAre(1, 2, 4, width));
  }
  const Signature signature{{Value("past_key_values.0.key", DType::kF32, extents)},
                            {Value("present.0.key", DType::kF32, extents)}};
  EXPECT_EQ(
      Feeds::Create(signature, {}).status().message(),
      "input 'past_key_values.0.key' has shape [-1, -1, -1, -1], and nothing tells the extent of its axis 1; needs "
      "option 'extent' = 'heads=N'");
  const auto told =
      Feeds::Create(signature, {.caches = {}, .meanings = {}, .named = {{"heads", 3}, {"past_key_values.0.key.3", 8}}});
  ASSERT_TRUE(told.ok()) << told.status().message();
  EXPECT_THAT(told->FirstStates({})->at("past_key_values.0.key").shape, ElementsAre(1, 3, 0, 8));
}

TEST(Feeds, TheGraphTellsWhatInputsOfOtherNamesAre) {
  KnownInputs known;
  known.meanings = {{"lens", {Role::kLast, "B"}}, {"most", {Role::kTotal, ""}}, {"rows", {Role::kTotal, "B"}}};
  known.caches["pk"] = {.heads = 2, .head_size = 16, .rows = 0};
  const auto feeds = Feeds::Create({{Value("q", DType::kF32, {"b", "s", "16"}), Value("lens", DType::kI32, {"b", "1"}),
                                     Value("most", DType::kI32, {}), Value("rows", DType::kI64, {"b"}),
                                     Value("pk", DType::kI4, {"b", "h", "p", "d"})},
                                    {}},
                                   known);
  ASSERT_TRUE(feeds.ok()) << feeds.status().message();
  const auto made = feeds->Make({.batch = 1, .tokens = 2, .past = 3, .given = {}}, 1);
  ASSERT_TRUE(made.ok()) << made.status().message();
  EXPECT_THAT(made->at("q").shape, ElementsAre(1, 5, 16));
  EXPECT_THAT(made->at("lens").shape, ElementsAre(1, 1));
  EXPECT_THAT(All(made->at("lens")), ElementsAre(4));
  EXPECT_THAT(All(made->at("most")), ElementsAre(5));
  EXPECT_THAT(All(made->at("rows")), ElementsAre(5));
  EXPECT_THAT(made->at("pk").shape, ElementsAre(1, 2, 3, 8));
}

TEST(Feeds, AnExtentThatNobodyAsksForIsRefused) {
  const Signature signature{{Value("input_ids", DType::kI64, {"batch", "tokens"}), Value("x", DType::kF32, {"width"})},
                            {}};
  EXPECT_EQ(Feeds::Create(signature, {.caches = {}, .meanings = {}, .named = {{"widht", 3}}}).status().message(),
            "option 'extent': no input has an extent 'widht' that is to be told; have 'width'");
  EXPECT_EQ(Feeds::Create({{Value("input_ids", DType::kI64, {"batch", "tokens"})}, {}},
                          {.caches = {}, .meanings = {}, .named = {{"tokens", 3}}})
                .status()
                .message(),
            "option 'extent': no input has an extent 'tokens' that is to be told; all are known");
}

// A model that keeps what it is fed, and whose presents and logits count its calls.
class Recorder : public Runner {
 public:
  Recorder(Signature signature, std::vector<NamedTensors>& calls) : signature_(std::move(signature)), calls_(calls) {}
  const Signature& Describe() const override { return signature_; }
  Result<NamedTensors> Run(const NamedTensors& feeds) const override {
    calls_.push_back(feeds);
    NamedTensors outputs;
    for (const ValueInfo& output : signature_.outputs)
      outputs[output.name] = Tensor::Integers(DType::kF32, {1}, {static_cast<int64_t>(calls_.size())});
    return outputs;
  }

 private:
  Signature signature_;
  std::vector<NamedTensors>& calls_;
};

TEST(Decoder, FeedsEachPresentAsTheNextStepsPast) {
  std::vector<NamedTensors> calls;
  const Signature signature{{Value("inputs_embeds", DType::kF16, {"batch", "tokens", "4"}),
                             Value("past_conv.0", DType::kF32, {"batch", "8", "3"})},
                            {Value("logits", DType::kF32, {"batch", "tokens", "8"}),
                             Value("present_conv.0", DType::kF32, {"batch", "8", "3"})}};
  auto decoder = Decoder::Create(std::make_unique<Recorder>(signature, calls), {});
  ASSERT_TRUE(decoder.ok()) << decoder.status().message();
  EXPECT_EQ(decoder->precision(), DType::kF16);
  const auto steps = RandomSteps({.seed = 1, .prompt = 5, .steps = 2}, decoder->feeds(), 8);
  ASSERT_TRUE(steps.ok()) << steps.status().message();
  for (const Step& step : *steps) ASSERT_TRUE(decoder->Logits(step).ok());
  ASSERT_EQ(calls.size(), 3U);
  EXPECT_THAT(calls[0].at("inputs_embeds").shape, ElementsAre(1, 5, 4));
  EXPECT_THAT(calls[2].at("inputs_embeds").shape, ElementsAre(1, 1, 4));
  EXPECT_THAT(calls[0].at("past_conv.0").shape, ElementsAre(1, 8, 3));
  EXPECT_THAT(All(calls[1].at("past_conv.0")), ElementsAre(1));
  EXPECT_THAT(All(calls[2].at("past_conv.0")), ElementsAre(2));
}

TEST(Feeds, StatesGoByTheNamesOfAllExporters) {
  for (const auto& [past, present] :
       {std::pair{"past_key_values.0.key", "present.0.key"}, std::pair{"past_conv.0", "present_conv.0"},
        std::pair{"past_key.0", "past_key.0_RetainedState"}, std::pair{"state", "state_RetainedState"}}) {
    const Extents extents = {"batch", "2", "4", "8"};
    const auto feeds = Feeds::Create({{Value(past, DType::kF32, extents)}, {Value(present, DType::kF32, extents)}}, {});
    ASSERT_TRUE(feeds.ok()) << feeds.status().message();
    EXPECT_EQ(feeds->all().front().role, Role::kState) << past;
    EXPECT_EQ(feeds->all().front().present, present);
  }
}

TEST(Decoder, WithoutStatesCannotGoOn) {
  std::vector<NamedTensors> calls;
  const Signature signature{{Value("input_ids", DType::kI64, {"batch", "tokens"})},
                            {Value("logits", DType::kF32, {"batch", "tokens", "8"})}};
  auto decoder = Decoder::Create(std::make_unique<Recorder>(signature, calls), {});
  ASSERT_TRUE(decoder.ok()) << decoder.status().message();
  EXPECT_EQ(
      decoder->Logits({.batch = 1, .tokens = 1, .past = 1, .given = {}}).status().message(),
      "the model has no input past_key_values.* to go on with after a prefill; needs one, or option 'steps' = '0'");
}

TEST(RandomPrompt, IsTheSameInEveryFloatType) {
  const auto prompt = [](DType type) {
    const auto feeds = Feeds::Create({{Value("inputs_embeds", type, {"B", "S", "16"})}, {}}, {});
    return All(*RandomPrompt(feeds->all().front(), {.batch = 1, .tokens = 9, .past = 0, .given = {}}, 7, 8));
  };
  EXPECT_EQ(prompt(DType::kF32), prompt(DType::kF16));
  EXPECT_EQ(prompt(DType::kF32), prompt(DType::kBF16));
}

}  // namespace
}  // namespace kvshare::host
