// Reads numpy's .npy and .npz files: little-endian f4, f2, i8, i4 and b1 arrays in C order.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "kvshare/tensor.h"

namespace kvshare::host {

// One array from the bytes of a .npy file (format versions 1 to 3). `label` opens every message.
Result<Tensor> ParseNpy(std::span<const std::byte> bytes, const std::string& label);

// All arrays of a .npz file, by name without ".npy". `most`: how many bytes they may have together, unpacked. No golden
// file comes near; more in a zip directory is a damaged or hostile file.
Result<NamedTensors> ReadNpz(const std::string& path, uint64_t most = uint64_t{1} << 31);

}  // namespace kvshare::host
