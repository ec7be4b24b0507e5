// A model on disk: parsed once, written once, its weights by reference.
#pragma once

#include <filesystem>
#include <set>
#include <string>
#include <string_view>

#include "graph/atomic_file.h"
#include "kvshare/status.h"
#include "onnx/onnx-ml.pb.h"

namespace kvshare::graph {

struct ModelFile {
  onnx::ModelProto model;
  std::filesystem::path folder;     // where the external data lies
  std::set<std::string> locations;  // of the external data, checked
};

// kInvalidInput, in one line, for anything that is not a sound ONNX model with sound external data.
Result<ModelFile> LoadModel(const std::filesystem::path& path);

// The same for bytes as `path` would hold them.
Result<ModelFile> ParseModel(std::string_view bytes, const std::filesystem::path& path);

struct SaveOptions {
  std::string weights_name;  // as RewriteOptions has them
  bool link_weights = false;
  CopyProgress progress = {};
};

// Writes `model`, whose external data are `file`'s, to `out`; atomically, the weights first.
Status SaveModel(onnx::ModelProto model, const ModelFile& file, const std::filesystem::path& out,
                 const SaveOptions& options);

}  // namespace kvshare::graph
