// Reads numpy's .npy and .npz files: little-endian f4, f2, i8, i4 and b1 arrays in C order.
#pragma once

#include <map>
#include <span>
#include <string>

#include "host/tensor.h"

namespace kvshare::host {

using NamedTensors = std::map<std::string, Tensor>;

// One array from the bytes of a .npy file (format versions 1 to 3). `where` opens every message.
Result<Tensor> ParseNpy(std::span<const std::byte> bytes, const std::string& where);

// All arrays of a .npz file, by name without ".npy".
Result<NamedTensors> ReadNpz(const std::string& path);

}  // namespace kvshare::host
