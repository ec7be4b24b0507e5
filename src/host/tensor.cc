#include "kvshare/tensor.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <limits>

#include "core/half.h"

namespace kvshare {

Tensor Tensor::Zeros(DType type, std::vector<int64_t> shape) {
  Tensor tensor{type, std::move(shape), {}};
  tensor.data.resize(static_cast<size_t>(tensor.Elements()) * SizeOf(type));
  return tensor;
}

Tensor Tensor::Integers(DType type, std::vector<int64_t> shape, const std::vector<int64_t>& values) {
  Tensor tensor = Zeros(type, std::move(shape));
  for (size_t i = 0; i < values.size(); ++i) {
    std::byte* element = tensor.data.data() + i * SizeOf(type);
    switch (type) {
      case DType::kI64: std::memcpy(element, &values[i], sizeof(int64_t)); break;
      case DType::kI32: {
        const auto narrow = static_cast<int32_t>(values[i]);
        std::memcpy(element, &narrow, sizeof(narrow));
        break;
      }
      case DType::kBool: *element = values[i] != 0 ? std::byte{1} : std::byte{0}; break;
      default: StoreElement(tensor.data.data(), type, static_cast<int64_t>(i), static_cast<double>(values[i]));
    }
  }
  return tensor;
}

int64_t Tensor::Elements() const {
  int64_t count = 1;
  for (const int64_t extent : shape) count *= extent;
  return count;
}

double Tensor::At(int64_t index) const { return LoadElement(data.data(), type, index); }

Tensor Tensor::Part(int64_t index) const {
  Tensor part{type, {shape.begin() + 1, shape.end()}, {}};
  const size_t bytes = static_cast<size_t>(part.Elements()) * SizeOf(type);
  const std::byte* begin = data.data() + static_cast<size_t>(index) * bytes;
  part.data.assign(begin, begin + bytes);
  return part;
}

std::string ShapeText(const std::vector<int64_t>& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

Result<size_t> BytesOf(DType type, const std::vector<int64_t>& shape) {
  constexpr size_t kLimit = std::numeric_limits<int64_t>::max();
  size_t bytes = SizeOf(type);
  for (const int64_t extent : shape) {
    if (extent < 0) return Status::InvalidInput(fmt::format("shape {} has a negative extent", ShapeText(shape)));
    const auto count = static_cast<size_t>(extent);
    if (count != 0 && bytes > kLimit / count) {
      return Status::InvalidInput(fmt::format("shape {} has more elements than memory can hold", ShapeText(shape)));
    }
    bytes *= count;
  }
  return bytes;
}

}  // namespace kvshare
