// A tensor that owns its elements: what .npz files hold and what models take and give.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "kvshare/shapes.h"
#include "kvshare/status.h"

namespace kvshare {

struct Tensor {
  DType type = DType::kF32;
  std::vector<int64_t> shape;   // in pairs where the type is kI4: a uint8 of ONNX is one element
  std::vector<std::byte> data;  // row-major, SizeOf(type) * Elements() bytes

  // All zeros. `shape` has no negative extent.
  static Tensor Zeros(DType type, std::vector<int64_t> shape);
  // A tensor of `type` from `values`, of which there are as many as `shape` says.
  static Tensor Integers(DType type, std::vector<int64_t> shape, const std::vector<int64_t>& values);

  int64_t Elements() const;
  double At(int64_t index) const;

  // Part `index` of the first axis, which is dropped from the shape. Needs 0 <= index < shape[0].
  Tensor Part(int64_t index) const;
};

using NamedTensors = std::map<std::string, Tensor>;

// "[1, 29]": the spelling of error messages.
std::string ShapeText(const std::vector<int64_t>& shape);

// The size in bytes of a shape, judged before memory is asked for. kInvalidInput for a negative extent, or more
// elements than memory can hold.
Result<size_t> BytesOf(DType type, const std::vector<int64_t>& shape);

}  // namespace kvshare
