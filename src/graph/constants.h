// Small constants, wherever a model keeps them: inline, in a typed field, or in external data.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

#include "onnx/onnx-ml.pb.h"

namespace kvshare::graph {

// Integer and bool tensors of up to 1024 elements; nothing for other types, larger tensors or unreadable data.
std::optional<std::vector<int64_t>> IntsOf(const onnx::TensorProto& tensor, const std::filesystem::path& folder);

// The value of a float, double, f16 or bf16 tensor of one element.
std::optional<double> ScalarOf(const onnx::TensorProto& tensor, const std::filesystem::path& folder);

// Bytes an element takes; 0 for strings and for types packed below a byte.
size_t ElementBytes(int data_type);

// One external-data entry ("location", "offset", "length"), or nothing.
std::optional<std::string> ExternalEntry(const onnx::TensorProto& tensor, const char* key);

}  // namespace kvshare::graph
