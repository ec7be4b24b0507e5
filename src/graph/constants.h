// Small constants, wherever a model keeps them: inline, in a typed field, or in external data.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

#include "onnx/onnx-ml.pb.h"

namespace kvshare::graph {

// The largest tensor whose elements are read: shapes, indices and masks of fixed shapes are smaller.
inline constexpr int64_t kMostElements = int64_t{1} << 22;

// Integer and bool tensors of up to kMostElements; nothing for other types, larger tensors or unreadable data.
std::optional<std::vector<int64_t>> IntsOf(const onnx::TensorProto& tensor, const std::filesystem::path& folder);

// The same for float, double, f16 and bf16.
std::optional<std::vector<double>> FloatsOf(const onnx::TensorProto& tensor, const std::filesystem::path& folder);

// The value of one that has one element.
std::optional<double> ScalarOf(const onnx::TensorProto& tensor, const std::filesystem::path& folder);

// Bytes an element takes; 0 for strings and for types packed below a byte.
size_t ElementBytes(int data_type);

// One external-data entry ("location", "offset", "length"), or nothing.
std::optional<std::string> ExternalEntry(const onnx::TensorProto& tensor, const char* key);

}  // namespace kvshare::graph
