#include "host/comparison.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <utility>

#include "core/half.h"

#include "host/find_ort.h"
#include "host/npz.h"
#include "host/ort_host.h"

namespace kvshare::host {
namespace {

using ::testing::HasSubstr;
using ::testing::Lt;

std::string Case(const std::string& name) { return std::string(KVSHARE_TEST_DATA) + "/" + name; }

Decoder Load(const std::string& name) {
  const auto file = FindOrt("", KVSHARE_TEST_DATA);
  const auto ort = OrtHost::Open(*file);
  auto runner = (*ort)->Load(Case(name) + "/model.onnx", {});
  EXPECT_TRUE(runner.ok()) << runner.status().message();
  auto decoder = Decoder::Create(*std::move(runner), {});
  EXPECT_TRUE(decoder.ok()) << decoder.status().message();
  return *std::move(decoder);
}

NamedTensors Golden(const std::string& name) { return *ReadNpz(Case(name) + "/golden.npz"); }

TEST(VerifyGolden, AcceptsUpstreamsSharedForm) {
  Decoder decoder = Load("head_shared_gqa");
  const auto verification = VerifyGolden({&decoder}, Golden("head_shared_gqa"));
  ASSERT_TRUE(verification.ok()) << verification.status().message();
  ASSERT_EQ(verification->steps.size(), 7U);
  EXPECT_EQ(verification->steps[0].step, "prefill");
  EXPECT_EQ(verification->steps[6].step, "decode 5");
  EXPECT_TRUE(verification->Within(1e-4));
}

TEST(VerifyGolden, ComparesAPaddedPrefillOnlyWhereTokensAre) {
  Decoder decoder = Load("head_b2_ragged");
  NamedTensors golden = Golden("head_b2_ragged");
  Tensor& logits = golden.at("prefill_logits");
  const auto padding = static_cast<int64_t>(golden.at("lens").At(1));
  ASSERT_LT(padding, logits.shape[1]);
  StoreElement(logits.data.data(), logits.type, (logits.shape[1] + padding) * logits.shape[2], 1e6);
  const auto verification = VerifyGolden({&decoder}, golden);
  ASSERT_TRUE(verification.ok()) << verification.status().message();
  EXPECT_TRUE(verification->Within(1e-4));
}

TEST(VerifyGolden, ADifferenceInAnyTokenOfAPrefillCounts) {
  for (const bool nan : {false, true}) {
    Decoder decoder = Load("head_b2_ragged");
    NamedTensors golden = Golden("head_b2_ragged");
    Tensor& logits = golden.at("prefill_logits");
    const auto valid = static_cast<int64_t>(golden.at("lens").At(1));
    StoreElement(logits.data.data(), logits.type, (logits.shape[1] + valid) * logits.shape[2] - 1,
                 nan ? std::numeric_limits<double>::quiet_NaN() : 1e6);
    const auto verification = VerifyGolden({&decoder}, golden);
    ASSERT_TRUE(verification.ok()) << verification.status().message();
    EXPECT_FALSE(verification->Within(1e-4)) << nan;
    EXPECT_FALSE(verification->RelativelyWithin(1e-4)) << nan;
    EXPECT_EQ(std::isnan(verification->steps[0].difference), nan);
    EXPECT_EQ(std::isnan(verification->steps[0].relative), nan);
  }
}

TEST(Verification, ADifferenceAsLargeAsTheToleranceIsWithinIt) {
  const double tolerance = 0.25;
  Verification verification;
  verification.steps = {{"prefill", tolerance, tolerance}};
  EXPECT_TRUE(verification.Within(tolerance));
  EXPECT_TRUE(verification.RelativelyWithin(tolerance));
  EXPECT_FALSE(verification.Within(std::nextafter(tolerance, 0)));
  EXPECT_FALSE(verification.RelativelyWithin(std::nextafter(tolerance, 0)));
}

TEST(Verification, WithoutAToleranceTheTypeDecides) {
  Verification verification;
  verification.steps = {{"prefill", 1e-4, 3.0}};
  Judge(std::nullopt, verification);
  EXPECT_TRUE(verification.equal && !verification.relative);
  verification.steps = {{"prefill", 1.1e-4, 0}};
  Judge(std::nullopt, verification);
  EXPECT_FALSE(verification.equal);
  for (const auto& [type, rounding] : {std::pair(DType::kF16, 0x1p-11), std::pair(DType::kBF16, 0x1p-8)}) {
    verification.precision = type;
    verification.steps = {{"prefill", 1e6, 64 * rounding}};
    Judge(std::nullopt, verification);
    EXPECT_TRUE(verification.equal && verification.relative);
    verification.steps = {{"prefill", 0, 65 * rounding}};
    Judge(std::nullopt, verification);
    EXPECT_FALSE(verification.equal);
    Judge(0.0, verification);  // what the caller says is absolute
    EXPECT_TRUE(verification.equal && !verification.relative);
  }
}

TEST(VerifyGolden, ANaNIsADifference) {
  Decoder decoder = Load("head_shared_gqa");
  NamedTensors golden = Golden("head_shared_gqa");
  Tensor& logits = golden.at("decode_logits");
  StoreElement(logits.data.data(), logits.type, 0, std::numeric_limits<double>::quiet_NaN());
  const auto verification = VerifyGolden({&decoder}, golden);
  ASSERT_TRUE(verification.ok()) << verification.status().message();
  EXPECT_TRUE(std::isnan(verification->steps[1].difference));
  EXPECT_FALSE(verification->Within(1e9));
}

TEST(VerifyGolden, NamesAMissingArray) {
  Decoder decoder = Load("head_shared_gqa");
  NamedTensors golden = Golden("head_shared_gqa");
  golden.erase("decode_attention_mask_3");
  const auto verification = VerifyGolden({&decoder}, golden);
  ASSERT_FALSE(verification.ok());
  EXPECT_EQ(verification.status().code(), StatusCode::kInvalidInput);
  EXPECT_THAT(verification.status().message(), HasSubstr("golden.npz has no array 'decode_attention_mask_3'"));
}

TEST(VerifyGolden, RefusesArraysThatDoNotFitTogether) {
  Decoder decoder = Load("mixed_bias_causal0");
  NamedTensors golden = Golden("mixed_bias_causal0");
  golden["position_ids"] = Tensor::Zeros(DType::kI64, {1, 5});
  const auto verification = VerifyGolden({&decoder}, golden);
  ASSERT_FALSE(verification.ok());
  EXPECT_THAT(verification.status().message(), HasSubstr("'position_ids' has shape [1, 5]; needs [1, 29]"));
}

struct OddArray {
  const char* name;
  std::vector<int64_t> shape;
  const char* message;
};

class VerifyOddArray : public ::testing::TestWithParam<OddArray> {};

TEST_P(VerifyOddArray, NamesItItsShapeAndTheWant) {
  Decoder decoder = Load("head_shared_gqa");
  NamedTensors golden = Golden("head_shared_gqa");
  golden[GetParam().name] = Tensor::Zeros(DType::kF32, GetParam().shape);
  const auto verification = VerifyGolden({&decoder}, golden);
  ASSERT_FALSE(verification.ok());
  EXPECT_EQ(verification.status().message(), GetParam().message);
}

INSTANTIATE_TEST_SUITE_P(
    Arrays, VerifyOddArray,
    ::testing::Values(
        OddArray{"lens", {1, 1}, "golden.npz: 'lens' has shape [1, 1]; needs rank 1"},
        OddArray{"attention_mask", {1, 3}, "golden.npz: 'attention_mask' has shape [1, 3]; needs [1, 29]"},
        OddArray{"lens", {2}, "golden.npz: 'lens' has shape [2]; needs [1]"},
        OddArray{
            "prefill_logits", {1, 5, 160}, "golden.npz: 'prefill_logits' has shape [1, 5, 160]; needs [1, 29, 160]"},
        OddArray{
            "prefill_logits", {1, 29, 161}, "golden.npz: 'decode_logits' has shape [6, 1, 160]; needs [6, 1, 161]"},
        OddArray{"decode_input_ids", {6, 2}, "golden.npz: 'decode_input_ids' has shape [6, 2]; needs [6, 1]"},
        OddArray{"decode_attention_mask_2",
                 {1, 31},
                 "golden.npz: 'decode_attention_mask_2' has shape [1, 31]; needs [1, 32]"}),
    [](const auto& test) { return std::string(test.param.name) + std::to_string(test.index); });

TEST(VerifyGolden, RefusesToCompareNothing) {
  Decoder decoder = Load("head_shared_gqa");
  NamedTensors golden = Golden("head_shared_gqa");
  for (const double length : {0.0, 30.0, -1.0, std::numeric_limits<double>::quiet_NaN()}) {
    golden["lens"] = Tensor::Zeros(DType::kF32, {1});
    StoreElement(golden["lens"].data.data(), DType::kF32, 0, length);
    EXPECT_EQ(VerifyGolden({&decoder}, golden).status().message(),
              fmt::format("golden.npz: 'lens' has lens[0] = {}; needs 1 to 29, the tokens", length));
  }
  golden["lens"] = Tensor::Zeros(DType::kF32, {0});
  golden["input_ids"] = golden["attention_mask"] = golden["position_ids"] = Tensor::Zeros(DType::kI64, {0, 29});
  EXPECT_EQ(VerifyGolden({&decoder}, golden).status().message(),
            "golden.npz: 'lens' has no element; needs one for each sequence, and one sequence");
}

TEST(VerifyGolden, NamesLogitsOfAnotherShape) {
  Decoder decoder = Load("head_shared_gqa");
  NamedTensors golden = Golden("head_shared_gqa");
  golden["prefill_logits"] = Tensor::Zeros(DType::kF32, {1, 29, 161});
  golden["decode_logits"] = Tensor::Zeros(DType::kF32, {6, 1, 161});
  EXPECT_EQ(VerifyGolden({&decoder}, golden).status().message(),
            "output 'logits' has shape [1, 29, 160]; expected [1, 29, 161]");
}

TEST(VerifyAgainst, TheSameNetworkInTwoFormsIsEqual) {
  Decoder mixed = Load("mixed_bias_causal0");
  Decoder shared = Load("head_shared_gqa");
  const auto verification = VerifyAgainst({&mixed}, {&shared}, {.seed = 7, .prompt = 11, .steps = 3});
  ASSERT_TRUE(verification.ok()) << verification.status().message();
  ASSERT_EQ(verification->steps.size(), 4U);
  EXPECT_TRUE(verification->Within(1e-4));
}

// A model whose logits have no element.
class Silent : public Runner {
 public:
  const Signature& Describe() const override { return signature_; }
  Result<NamedTensors> Run(const NamedTensors& /*feeds*/) const override {
    return NamedTensors{{"logits", Tensor::Zeros(DType::kF32, {1, 0, 8})}};
  }

 private:
  Signature signature_{{{.name = "input_ids", .type = DType::kI64, .shape = {-1, -1}, .symbols = {"b", "s"}}},
                       {{.name = "logits", .type = DType::kF32, .shape = {-1, -1, 8}, .symbols = {"b", "s", ""}}}};
};

TEST(VerifyAgainst, RefusesToCompareNothing) {
  Decoder decoder = *Decoder::Create(std::make_unique<Silent>(), {});
  Decoder other = *Decoder::Create(std::make_unique<Silent>(), {});
  EXPECT_EQ(VerifyAgainst({&decoder}, {&other}, {.seed = 1, .prompt = 2, .steps = 0}).status().message(),
            "output 'logits' is empty; needs one to compare");
}

TEST(Verify, NeedsOneTruth) {
  const auto ort = OpenOnnxRuntime("", KVSHARE_TEST_DATA);
  ASSERT_TRUE(ort.ok()) << ort.status().message();
  VerifyOptions options;
  EXPECT_EQ(Verify("model.onnx", options, **ort).status().message(),
            "needs either option 'golden' or option 'against'");
  options.golden = options.against = "both";
  EXPECT_EQ(Verify("model.onnx", options, **ort).status().message(),
            "needs either option 'golden' or option 'against'");
}

TEST(RandomSteps, TheSameSeedGivesTheSameTokens) {
  const Decoder decoder = Load("head_shared_gqa");
  const auto steps = [&](uint64_t seed) {
    return *RandomSteps({.seed = seed, .prompt = 9, .steps = 2}, decoder.feeds(), 160);
  };
  const auto a = steps(5);
  const auto b = steps(5);
  ASSERT_EQ(a.size(), 3U);
  const Tensor& ids = a[0].given.at("input_ids");
  EXPECT_EQ(ids.data, b[0].given.at("input_ids").data);
  EXPECT_NE(ids.data, steps(6)[0].given.at("input_ids").data);
  EXPECT_NE(a[1].given.at("input_ids").data, a[2].given.at("input_ids").data);
  EXPECT_EQ(a[2].past, 10);
  EXPECT_EQ(a[2].total(), 11);
  for (int64_t s = 0; s < 9; ++s) EXPECT_THAT(ids.At(s), Lt(160));
}

}  // namespace
}  // namespace kvshare::host
