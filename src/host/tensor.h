// A tensor that owns its elements: what .npz files hold and what sessions take and give.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/half.h"
#include "kvshare/shapes.h"
#include "kvshare/status.h"

namespace kvshare::host {

struct Tensor {
  DType type = DType::kF32;
  std::vector<int64_t> shape;   // in pairs where the type is kI4
  std::vector<std::byte> data;  // row-major, SizeOf(type) * Elements() bytes

  // All zeros. `shape` has no negative extent.
  static Tensor Zeros(DType type, std::vector<int64_t> shape);
  // A tensor of `type` (an integer or bool) from `values`, of which there are as many as `shape` says.
  static Tensor Integers(DType type, std::vector<int64_t> shape, const std::vector<int64_t>& values);

  int64_t Elements() const;
  double At(int64_t index) const { return LoadElement(data.data(), type, index); }

  // Part `index` of the first axis, which is dropped from the shape. Needs 0 <= index < shape[0].
  Tensor Part(int64_t index) const;
};

// "[1, 29]": the spelling of error messages.
std::string ShapeText(const std::vector<int64_t>& shape);

// The size in bytes of a shape, judged before memory is asked for.
Result<size_t> BytesOf(DType type, const std::vector<int64_t>& shape);

}  // namespace kvshare::host
