// The weights of a model that is written anew: what they are called, and how they get beside it.
#pragma once

#include <filesystem>
#include <map>
#include <set>
#include <string>

#include "graph/atomic_file.h"
#include "kvshare/status.h"
#include "onnx/onnx-ml.pb.h"

namespace kvshare::graph {

// A location as the model names it -> as the written model names it.
using NewLocations = std::map<std::string, std::string>;

// `name` "": all as they were. Else a single file is called `name`, and several lie in a folder `name`, each as it was.
// kInvalidInput where `name` is absolute, has "..", or names no file.
Result<NewLocations> NameLocations(const std::set<std::string>& locations, const std::string& name);

// Gives the tensors of `model` their new locations.
void RenameLocations(onnx::ModelProto& model, const NewLocations& locations);

struct Placing {
  std::filesystem::path from;  // folder of the model that was read
  std::filesystem::path to;    // folder of the model that is written
  bool link = false;           // a hard link in place of a copy
  CopyProgress progress = {};
};

// Makes the files available in folder `to`: nothing to do where they are there, else a copy, which shares its blocks
// with the original where the file system can (reflink), else a hard link on request. kRefused, before anything is
// written, where another file has that name, or where the file that is there lies outside of `to`: it is a link, and a
// model that is none itself may not have such weights.
Status PlaceWeights(const NewLocations& locations, const Placing& placing);

}  // namespace kvshare::graph
