// Weights that lie in files beside the model. They are checked and carried along, never read.
#pragma once

#include <filesystem>
#include <set>
#include <string>

#include "kvshare/status.h"
#include "onnx/onnx-ml.pb.h"

namespace kvshare::graph {

// The locations that tensors of `model` name, wherever they are: initializers, attributes, subgraphs, functions.
// kInvalidInput where one leaves `folder` (absolute, "..", a symlink out), is missing, or is shorter than the tensor,
// or where two tensors share some of their bytes but not all.
Result<std::set<std::string>> CheckExternalData(const onnx::ModelProto& model, const std::filesystem::path& folder);

// Makes `locations` of folder `from` available in folder `to`: nothing to do where they are one folder, else a hard
// link, else a copy. A different file of that name in `to` is kRefused, never overwritten.
Status PlaceExternalData(const std::set<std::string>& locations, const std::filesystem::path& from,
                         const std::filesystem::path& to);

}  // namespace kvshare::graph
