#include "host/differences.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace kvshare::host {
namespace {

// Takes the rows [begin, end) of V logits each into `step`. Equal infinities differ by 0.
void Compare(const Tensor& got, const Tensor& want, int64_t begin, int64_t end, StepDifference& step) {
  const int64_t V = want.shape.back();
  for (int64_t row = begin; row < end; ++row) {
    double difference = 0;
    double largest = 0;
    for (int64_t i = row * V; i < (row + 1) * V; ++i) {
      const double x = got.At(i);
      const double y = want.At(i);
      largest = std::max(largest, std::fabs(y));
      if (x != y) difference = Larger(std::fabs(x - y), difference);
    }
    step.difference = Larger(difference, step.difference);
    step.relative = Larger(difference == 0 ? 0 : difference / largest, step.relative);
  }
}

// Those rows of `logits` [B, S, V] that a model answers which computes no others: each sequence's last token's.
Tensor LastRows(const Tensor& logits, const std::vector<int64_t>& lens) {
  Tensor last = Tensor::Zeros(logits.type, {logits.shape[0], 1, logits.shape[2]});
  const size_t bytes = last.data.size() / lens.size();
  for (size_t b = 0; b < lens.size(); ++b) {
    const int64_t row = static_cast<int64_t>(b) * logits.shape[1] + lens[b] - 1;
    std::copy_n(logits.data.begin() + row * static_cast<std::ptrdiff_t>(bytes), bytes,
                last.data.begin() + static_cast<std::ptrdiff_t>(b * bytes));
  }
  return last;
}

}  // namespace

double Larger(double a, double b) { return std::isnan(a) || a > b ? a : b; }

bool OfLastTokens(const Tensor& logits, const std::vector<int64_t>& want) {
  return want.size() == 3 && want[0] > 0 && want[1] > 1 && logits.shape == std::vector<int64_t>{want[0], 1, want[2]};
}

Status CheckLogits(const Tensor& logits, const std::vector<int64_t>& want) {
  if (logits.shape == want) return {};
  return Status::InvalidInput(
      fmt::format("output 'logits' has shape {}; expected {}", ShapeText(logits.shape), ShapeText(want)));
}

Result<StepDifference> DifferenceOf(std::string step, const Tensor& got, const Tensor& want,
                                    const std::vector<int64_t>& lens) {
  StepDifference difference{.step = std::move(step)};
  const bool few_got = OfLastTokens(got, want.shape);
  const bool few_want = OfLastTokens(want, got.shape);
  if (!few_got && !few_want) KVSHARE_RETURN_IF_ERROR(CheckLogits(got, want.shape));
  if (want.Elements() == 0) return Status::Refused("output 'logits' is empty; needs one to compare");
  // Rows of no sequence's padding: without lengths, or where both answer for fewer tokens than there were.
  const bool whole = lens.empty() || std::ranges::any_of(lens, [&](int64_t len) { return len > want.shape[1]; });
  if (!few_got && !few_want && whole) {
    Compare(got, want, 0, want.Elements() / want.shape.back(), difference);
    return difference;
  }
  const int64_t batch = want.shape[0];
  const int64_t tokens = std::max(got.shape[1], want.shape[1]);
  const std::vector<int64_t> valid = lens.empty() ? std::vector<int64_t>(static_cast<size_t>(batch), tokens) : lens;
  if (few_got || few_want) {
    Compare(few_got ? got : LastRows(got, valid), few_want ? want : LastRows(want, valid), 0, batch, difference);
    return difference;
  }
  for (int64_t b = 0; b < batch; ++b)
    Compare(got, want, b * tokens, b * tokens + valid[static_cast<size_t>(b)], difference);
  return difference;
}

}  // namespace kvshare::host
