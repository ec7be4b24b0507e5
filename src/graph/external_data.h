// Weights that lie in files beside the model. They are checked, never read.
#pragma once

#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "kvshare/status.h"
#include "onnx/onnx-ml.pb.h"

namespace kvshare::graph {

// The folder that holds `path`; "." where it names none.
std::filesystem::path FolderOf(const std::filesystem::path& path);

// Is `path` below `folder`? Both without links and "..".
bool LiesIn(const std::filesystem::path& path, const std::filesystem::path& folder);

// Tensors whose data lie in a file, wherever the model has them: initializers, attributes, subgraphs, functions.
std::vector<const onnx::TensorProto*> ExternalTensors(const onnx::ModelProto& model);
std::vector<onnx::TensorProto*> ExternalTensors(onnx::ModelProto& model);

// The locations that tensors of `model` name, wherever they are: initializers, attributes, subgraphs, functions. Each
// is looked up in the folder of `path`, the model's file. With every link resolved it must lie in that folder, or in
// the folder of the file that `path` links to: a model in Hugging Face's cache and its weights are links into one
// folder. ONNX Runtime has the same rule. kInvalidInput where a location leaves both (absolute, "..", a link out), is
// missing, or is shorter than the tensor, or where two tensors share some of their bytes but not all.
Result<std::set<std::string>> CheckExternalData(const onnx::ModelProto& model, const std::filesystem::path& path);

}  // namespace kvshare::graph
