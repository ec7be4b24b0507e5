#include "host/ort_host.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "host/find_ort.h"

namespace kvshare::host {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string Model(const std::string& name) { return std::string(KVSHARE_TEST_DATA) + "/" + name + "/model.onnx"; }

class OrtHostTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto file = FindOrt("", KVSHARE_TEST_DATA);
    ASSERT_TRUE(file.ok()) << file.status().message();
    const auto opened = OrtHost::Open(*file);
    ASSERT_TRUE(opened.ok()) << opened.status().message();
    ort_ = *opened;
  }
  std::shared_ptr<const OrtHost> ort_;
};

TEST_F(OrtHostTest, TellsItsVersionAsInTheFileName) {
  EXPECT_THAT(ort_->where(), ::testing::EndsWith("/libonnxruntime.so." + ort_->version()));
}

TEST_F(OrtHostTest, DescribesInputsWithSymbols) {
  const auto session = Session::Create(ort_, Model("head_shared_gqa"), {});
  ASSERT_TRUE(session.ok()) << session.status().message();
  const ValueInfo& ids = session->Describe().inputs.front();
  EXPECT_EQ(ids.name, "input_ids");
  EXPECT_EQ(ids.type, DType::kI64);
  EXPECT_THAT(ids.shape, ElementsAre(-1, -1));
  EXPECT_THAT(ids.symbols, ElementsAre("batch", "sequence_len"));
  EXPECT_EQ(session->Describe().outputs.front().name, "logits");
}

TEST_F(OrtHostTest, AMissingInputIsNamed) {
  const auto session = Session::Create(ort_, Model("head_shared_gqa"), {});
  ASSERT_TRUE(session.ok()) << session.status().message();
  const auto outputs = session->Run({{"input_ids", Tensor::Zeros(DType::kI64, {1, 1})}});
  ASSERT_FALSE(outputs.ok());
  EXPECT_EQ(outputs.status().message(), "the model's input 'attention_mask' has no value");
}

TEST_F(OrtHostTest, AMissingModelIsBadInput) {
  const auto session = Session::Create(ort_, "no/such/model.onnx", {});
  ASSERT_FALSE(session.ok());
  EXPECT_EQ(session.status().code(), StatusCode::kInvalidInput);
}

TEST_F(OrtHostTest, ALibraryThatRegistersNothingIsRefused) {
  const auto session = Session::Create(ort_, Model("head_shared_gqa"), {.entries = {}, .library = ort_->where()});
  ASSERT_FALSE(session.ok());
  EXPECT_EQ(session.status().code(), StatusCode::kRefused);
  EXPECT_THAT(session.status().message(), HasSubstr("RegisterCustomOps"));
}

TEST(FindOrt, NamesWhoAskedForAMissingFile) {
  const auto found = FindOrt("no/such/libonnxruntime.so", "");
  ASSERT_FALSE(found.ok());
  EXPECT_EQ(found.status().message(), "option 'ort' names 'no/such/libonnxruntime.so', which is not there");
}

TEST(FindOrt, TakesTheLatestOfSeveralLibrariesByItsNumbers) {
  const auto folder = std::filesystem::temp_directory_path() / fmt::format("kvshare_find_ort_{}", getpid());
  std::filesystem::create_directories(folder);
  const auto add = [&](const std::string& name) { std::ofstream(folder / name) << name; };
  const auto found = [&] { return std::filesystem::path(*FindOrt(folder.string(), "")).filename().string(); };
  add("libonnxruntime.so");
  EXPECT_EQ(found(), "libonnxruntime.so");
  add("libonnxruntime.so.1.9.0");
  add("libonnxruntime.so.1");
  EXPECT_EQ(found(), "libonnxruntime.so.1.9.0");
  add("libonnxruntime.so.1.24.4");
  add("libonnxruntime.so.1.24");
  add("libonnxruntime.so.debug");
  add("libonnxruntime.so.2x");
  EXPECT_EQ(found(), "libonnxruntime.so.1.24.4");
  std::filesystem::remove_all(folder);
}

TEST(FindOrt, AFolderWithoutTheLibraryIsAnError) {
  const auto found = FindOrt(KVSHARE_TEST_DATA, "");
  ASSERT_FALSE(found.ok());
  EXPECT_THAT(found.status().message(), HasSubstr("holds no libonnxruntime.so"));
}

TEST(FindOrt, WithoutOneTellsTheWaysToNameOne) {
  const auto before = std::filesystem::current_path();
  const char* set = std::getenv("KVSHARE_ORT");
  const std::string asked = set == nullptr ? "" : set;
  unsetenv("KVSHARE_ORT");
  std::filesystem::current_path("/proc");
  const auto found = FindOrt("", "/proc");
  std::filesystem::current_path(before);
  if (!asked.empty()) setenv("KVSHARE_ORT", asked.c_str(), 1);
  ASSERT_FALSE(found.ok());
  EXPECT_EQ(found.status().message(),
            "no ONNX Runtime found; name libonnxruntime.so or a wheel's folder with option 'ort' or KVSHARE_ORT, or "
            "install the "
            "wheel into .venv");
}

TEST(OrtHost, AFileThatDoesNotLoadIsNamed) {
  EXPECT_THAT(OrtHost::Open("no/such.so").status().message(), HasSubstr("cannot load ONNX Runtime: no/such.so"));
}

TEST(OrtHost, AnotherSharedLibraryIsNotOnnxRuntime) {
  const auto opened = OrtHost::Open("libc.so.6");
  ASSERT_FALSE(opened.ok());
  EXPECT_THAT(opened.status().message(), HasSubstr("exports no OrtGetApiBase"));
}

}  // namespace
}  // namespace kvshare::host
