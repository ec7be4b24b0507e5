#include "host/differences.h"

#include <gtest/gtest.h>

#include "core/half.h"

namespace kvshare::host {
namespace {

Tensor Logits(const std::vector<int64_t>& shape, const std::vector<float>& values) {
  Tensor tensor = Tensor::Zeros(DType::kF32, shape);
  for (size_t i = 0; i < values.size(); ++i)
    StoreElement(tensor.data.data(), tensor.type, static_cast<int64_t>(i), static_cast<double>(values[i]));
  return tensor;
}

double Difference(const Tensor& got, const Tensor& want, const std::vector<int64_t>& lens) {
  const auto difference = DifferenceOf("step", got, want, lens);
  EXPECT_TRUE(difference.ok()) << difference.status().message();
  return difference.ok() ? difference->difference : -1;
}

TEST(DifferenceOf, RowsBehindASequencesEndDoNotCount) {
  const Tensor got = Logits({2, 2, 1}, {1, 2, 3, 9});
  EXPECT_EQ(Difference(got, Logits({2, 2, 1}, {1, 2, 3, 4}), {2, 1}), 0);
  EXPECT_EQ(Difference(got, Logits({2, 2, 1}, {1, 2, 3.5, 4}), {2, 1}), 0.5);
}

TEST(DifferenceOf, LogitsOfLastTokensMeetTheLastOfEachSequence) {
  const Tensor all = Logits({2, 2, 1}, {1, 2, 3, 9});
  EXPECT_EQ(Difference(Logits({2, 1, 1}, {2, 3}), all, {2, 1}), 0);
  EXPECT_EQ(Difference(all, Logits({2, 1, 1}, {2, 3.25}), {2, 1}), 0.25);
}

TEST(DifferenceOf, WhereBothAreOfLastTokensNoOtherRowIsRead) {
  for (const std::vector<int64_t>& lens : {std::vector<int64_t>{1000, 3}, {1, 1000}, {1, 1}, {}}) {
    EXPECT_EQ(Difference(Logits({2, 1, 2}, {1, 2, 3, 4}), Logits({2, 1, 2}, {1, 2, 3, 4}), lens), 0);
    EXPECT_EQ(Difference(Logits({2, 1, 2}, {1, 2, 3, 4}), Logits({2, 1, 2}, {1, 2, 3, 4.5}), lens), 0.5);
  }
}

}  // namespace
}  // namespace kvshare::host
