#include "graph/constants.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <fstream>

#include "core/half.h"

namespace kvshare::graph {
namespace {

using onnx::TensorProto;

// Nothing where there are more than kMostElements.
std::optional<int64_t> ElementCount(const TensorProto& tensor) {
  int64_t count = 1;
  for (const int64_t dim : tensor.dims()) {
    if (dim < 0 || (dim != 0 && count > kMostElements / dim)) return std::nullopt;
    count *= dim;
  }
  return count;
}

// The tensor's little-endian bytes where it holds them as bytes.
std::optional<std::string> BytesOf(const TensorProto& tensor, size_t bytes, const std::filesystem::path& folder) {
  if (tensor.data_location() != TensorProto::EXTERNAL) {
    if (!tensor.has_raw_data() || tensor.raw_data().size() != bytes) return std::nullopt;
    return tensor.raw_data();
  }
  const auto location = ExternalEntry(tensor, "location");
  if (!location) return std::nullopt;
  int64_t offset = 0;
  if (const auto text = ExternalEntry(tensor, "offset"))
    std::from_chars(text->data(), text->data() + text->size(), offset);
  std::ifstream file(folder / *location, std::ios::binary);
  std::string data(bytes, '\0');
  file.seekg(offset);
  if (!file.read(data.data(), static_cast<std::streamsize>(bytes))) return std::nullopt;
  return data;
}

template <typename T>
std::vector<int64_t> Widen(const std::string& bytes) {
  std::vector<int64_t> values(bytes.size() / sizeof(T));
  for (size_t i = 0; i < values.size(); ++i) {
    T value;
    std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
    values[i] = static_cast<int64_t>(value);
  }
  return values;
}

}  // namespace

size_t ElementBytes(int data_type) {
  switch (data_type) {
    case TensorProto::DOUBLE:
    case TensorProto::INT64:
    case TensorProto::UINT64:
    case TensorProto::COMPLEX64: return 8;
    case TensorProto::COMPLEX128: return 16;
    case TensorProto::FLOAT:
    case TensorProto::INT32:
    case TensorProto::UINT32: return 4;
    case TensorProto::FLOAT16:
    case TensorProto::BFLOAT16:
    case TensorProto::INT16:
    case TensorProto::UINT16: return 2;
    case TensorProto::BOOL:
    case TensorProto::INT8:
    case TensorProto::UINT8: return 1;
    default: return 0;
  }
}

std::optional<std::string> ExternalEntry(const TensorProto& tensor, const char* key) {
  for (const auto& entry : tensor.external_data())
    if (entry.key() == key) return entry.value();
  return std::nullopt;
}

std::optional<std::vector<int64_t>> IntsOf(const TensorProto& tensor, const std::filesystem::path& folder) {
  const auto count = ElementCount(tensor);
  if (!count) return std::nullopt;
  if (tensor.data_type() == TensorProto::INT64 && tensor.int64_data_size() == *count)
    return std::vector<int64_t>(tensor.int64_data().begin(), tensor.int64_data().end());
  if (tensor.data_type() != TensorProto::INT64 && tensor.data_type() != TensorProto::INT32 &&
      tensor.data_type() != TensorProto::BOOL)
    return std::nullopt;
  if (tensor.int32_data_size() == *count && *count > 0)
    return std::vector<int64_t>(tensor.int32_data().begin(), tensor.int32_data().end());
  const auto bytes = BytesOf(tensor, static_cast<size_t>(*count) * ElementBytes(tensor.data_type()), folder);
  if (!bytes) return std::nullopt;
  switch (tensor.data_type()) {
    case TensorProto::INT64: return Widen<int64_t>(*bytes);
    case TensorProto::INT32: return Widen<int32_t>(*bytes);
    default: return Widen<uint8_t>(*bytes);
  }
}

std::optional<std::vector<double>> FloatsOf(const TensorProto& tensor, const std::filesystem::path& folder) {
  const auto count = ElementCount(tensor);
  if (!count) return std::nullopt;
  const auto typed = [&](const auto& field, const auto& convert) -> std::optional<std::vector<double>> {
    if (field.size() != *count || *count == 0) return std::nullopt;
    std::vector<double> values(field.size());
    std::transform(field.begin(), field.end(), values.begin(), convert);
    return values;
  };
  const auto raw = [&]<typename T>(T /*element*/, const auto& convert) -> std::optional<std::vector<double>> {
    const auto bytes = BytesOf(tensor, static_cast<size_t>(*count) * sizeof(T), folder);
    if (!bytes) return std::nullopt;
    std::vector<T> elements(static_cast<size_t>(*count));
    std::memcpy(elements.data(), bytes->data(), bytes->size());
    std::vector<double> values(elements.size());
    std::transform(elements.begin(), elements.end(), values.begin(), convert);
    return values;
  };
  const auto widen = [](auto value) -> double { return value; };
  const auto half = [&](auto bits) -> double {
    const auto both = static_cast<uint16_t>(bits);
    return tensor.data_type() == TensorProto::FLOAT16 ? F32FromF16(both) : F32FromBF16(both);
  };
  switch (tensor.data_type()) {
    case TensorProto::FLOAT: {
      auto values = typed(tensor.float_data(), widen);
      return values ? std::move(values) : raw(float{}, widen);
    }
    case TensorProto::DOUBLE: {
      auto values = typed(tensor.double_data(), widen);
      return values ? std::move(values) : raw(double{}, widen);
    }
    case TensorProto::FLOAT16:
    case TensorProto::BFLOAT16: {
      auto values = typed(tensor.int32_data(), half);
      return values ? std::move(values) : raw(uint16_t{}, half);
    }
    default: return std::nullopt;
  }
}

std::optional<double> ScalarOf(const TensorProto& tensor, const std::filesystem::path& folder) {
  if (ElementCount(tensor) != 1) return std::nullopt;
  const auto floats = FloatsOf(tensor, folder);
  return floats ? std::optional(floats->front()) : std::nullopt;
}

}  // namespace kvshare::graph
