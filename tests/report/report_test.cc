#include "report/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

namespace kvshare::report {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(SpellOptions, EachFaceWritesOptionsItsOwnWay) {
  const std::string text = "option 'rope' = 'fold': needs option 'rope' = 'keep', or option 'to'; not optional 'x'";
  const auto flags = [](const std::string& name, const std::string& value) {
    return "--" + name + (value.empty() ? "" : " " + value);
  };
  EXPECT_EQ(SpellOptions(text, flags), "--rope fold: needs --rope keep, or --to; not optional 'x'");
  const auto keywords = [](const std::string& name, const std::string& value) { return name + "='" + value + "'"; };
  EXPECT_EQ(SpellOptions("a option 'extent' = 'D=8'", keywords), "a extent='D=8'");
  EXPECT_EQ(SpellOptions("nothing", keywords), "nothing");
  EXPECT_EQ(SpellOptions("option 'a b' = 'c', option 'd", keywords), "option 'a b' = 'c', option 'd");
}

TEST(SpellOptions, LongValuesTakeNoStack) {
  std::string value;
  value.resize(10'000'000, 'x');
  EXPECT_EQ(
      SpellOptions("option 'to' = '" + value + "'", [](const auto& name, const auto& given) { return name + given; }),
      "to" + value);
}

TEST(OneLine, ShowsWhatATerminalWouldNot) {
  EXPECT_EQ(OneLine("a 'b' \xC3\xA4 \xE2\x82\xAC \xF0\x9F\x98\x80 \\"),
            "a 'b' \xC3\xA4 \xE2\x82\xAC \xF0\x9F\x98\x80 \\");
  EXPECT_EQ(OneLine(std::string_view("a\nb\tc\x1B[31m\x7F\0d", 13)), "a\\nb\\x09c\\x1b[31m\\x7f\\x00d");
  EXPECT_EQ(OneLine("\xC2\x9B"), "\\xc2\\x9b") << "a control character of two bytes";
  EXPECT_EQ(OneLine("\xFF \xC3"), "\\xff \\xc3") << "no UTF-8, and cut short";
  EXPECT_EQ(OneLine("\xC0\xAF \xE0\x80\xAF"), "\\xc0\\xaf \\xe0\\x80\\xaf") << "longer than it need be";
  EXPECT_EQ(OneLine("\xED\xA0\x80 \xF4\x90\x80\x80"), "\\xed\\xa0\\x80 \\xf4\\x90\\x80\\x80") << "no characters";
}

TEST(InspectionText, NamesTheProducerAndCountsForms) {
  Inspection found;
  found.producer = "mobius 0.1.0";
  found.imports = {"", "com.microsoft"};
  found.opsets = {24, 1};
  found.layers.resize(3);
  found.layers[0].written = found.layers[2].written = "own Attention";
  found.layers[1].written = "shared Attention";
  found.unfused_layers = 4;
  EXPECT_THAT(ToText(found), HasSubstr("producer: mobius 0.1.0; ai.onnx 24, com.microsoft 1\nform: 2 x own Attention\n"
                                       "form: 1 x shared Attention\nform: 4 x MatMul and Softmax\n"));
  const auto json = nlohmann::json::parse(ToJson(found));
  EXPECT_EQ(json["producer"], "mobius 0.1.0");
  EXPECT_EQ(json["opsets"]["ai.onnx"], 24);
  EXPECT_EQ(json["layers"][1]["written"], "shared Attention");
  EXPECT_THAT(ToText(Inspection()), HasSubstr("producer: not named"));
}

TEST(VerificationText, SaysByWhatAHalfPrecisionModelIsJudged) {
  Verification v;
  v.steps = {{"prefill", 0.05, 0.002}};
  v.precision = DType::kF16;
  v.tolerance = 0.03125;
  v.relative = v.equal = true;
  EXPECT_EQ(ToText(v),
            "prefill    max diff 5.0e-02, 2.0e-03 of the row's largest logit\n"
            "equal within 0.03125 of the row's largest logit, the default for a model in f16 (ONNX Runtime )\n");
  v.relative = v.equal = false;
  v.runtime = "1.32.0";
  EXPECT_EQ(ToText(v), "prefill    max diff 5.0e-02\nNOT equal within 0.03125 (ONNX Runtime 1.32.0)\n");
}

TEST(VerificationJson, HasNoNaN) {
  Verification v;
  v.steps = {{"prefill", std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}};
  const auto json = nlohmann::json::parse(ToJson(v));
  EXPECT_TRUE(json["steps"][0]["difference"].is_null());
  EXPECT_TRUE(json["steps"][0]["relative"].is_null());
  EXPECT_FALSE(json["equal"]);
}

TEST(DiagnosisText, SaysWhatToDoWhereNothingRan) {
  Diagnosis d;
  EXPECT_THAT(ToText(d), HasSubstr("no GroupQueryAttention and no Attention"));
  d.drop_in = "attention";
  EXPECT_THAT(ToText(d), HasSubstr("option 'entry' = 'kvshare.drop_in=attention'"));
  EXPECT_THAT(ToText(d), Not(HasSubstr("no GroupQueryAttention")));
}

}  // namespace
}  // namespace kvshare::report
