#include "graph/weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <vector>

#include "graph/external_data.h"

namespace kvshare::graph {
namespace {

namespace fs = std::filesystem;

bool SameBytes(const fs::path& a, const fs::path& b) {
  std::error_code error;
  if (fs::file_size(a, error) != fs::file_size(b, error) || error) return false;
  std::ifstream left(a, std::ios::binary);
  std::ifstream right(b, std::ios::binary);
  std::vector<char> x(1 << 20);
  std::vector<char> y(1 << 20);
  while (left && right) {
    left.read(x.data(), static_cast<std::streamsize>(x.size()));
    right.read(y.data(), static_cast<std::streamsize>(y.size()));
    if (left.gcount() != right.gcount() || !std::equal(x.begin(), x.begin() + left.gcount(), y.begin())) return false;
  }
  return left.eof() && right.eof();
}

struct Move {
  fs::path source;
  fs::path target;
};

// Is `target` to be made? kRefused where it must not be.
Result<bool> NeedsMaking(const Move& move, const fs::path& folder) {
  std::error_code error;
  // Absolute first: weakly_canonical leaves a relative path as it is where no part of it exists yet.
  if (!LiesIn(fs::weakly_canonical(fs::absolute(move.target, error), error), fs::canonical(folder, error)))
    return Status::Refused(
        fmt::format("'{}' is a link that leaves its folder, which the written model could not load; write to another "
                    "folder, or give the weights a name of their own (option 'weights_name')",
                    move.target.string()));
  if (!fs::exists(fs::symlink_status(move.target, error))) return true;
  if (fs::equivalent(move.source, move.target, error) || SameBytes(move.source, move.target)) return false;
  return Status::Refused(fmt::format(
      "'{}' exists and is not the model's external data; write to another folder, or give the weights a name "
      "of their own (option 'weights_name')",
      move.target.string()));
}

Status Make(const Move& move, const Placing& placing) {
  std::error_code error;
  fs::create_directories(move.target.parent_path(), error);
  if (!placing.link) return CopyFileAtomically(move.source, move.target, placing.progress);
  fs::create_hard_link(move.source, move.target, error);
  if (!error) return {};
  return Status::Internal(
      fmt::format("cannot link '{}': {}; copy it (option 'link_weights' off)", move.target.string(), error.message()));
}

}  // namespace

Result<NewLocations> NameLocations(const std::set<std::string>& locations, const std::string& name) {
  std::set<fs::path> files;
  for (const std::string& location : locations) files.insert(fs::path(location).lexically_normal());
  const fs::path path(name);
  if (path.is_absolute() || std::find(path.begin(), path.end(), "..") != path.end() ||
      name.find('\0') != std::string::npos || (!name.empty() && !path.has_filename()) || path.filename() == ".")
    return Status::InvalidInput(fmt::format(
        "option 'weights_name' = '{}' names no file inside the output's folder; needs e.g. model.data", name));
  NewLocations made;
  for (const std::string& location : locations)
    made[location] = name.empty() ? location : (files.size() == 1 ? path : path / location).lexically_normal().string();
  return made;
}

void RenameLocations(onnx::ModelProto& model, const NewLocations& locations) {
  for (onnx::TensorProto* tensor : ExternalTensors(model))
    for (auto& entry : *tensor->mutable_external_data())
      if (entry.key() == "location") entry.set_value(locations.at(entry.value()));
}

Status PlaceWeights(const NewLocations& locations, const Placing& placing) {
  std::map<fs::path, fs::path> sources;  // by target
  for (const auto& [before, after] : locations)
    sources[(placing.to / after).lexically_normal()] = placing.from / before;
  std::vector<Move> moves;
  for (const auto& [target, named] : sources) {
    std::error_code error;
    const Move move{fs::canonical(named, error), target};
    KVSHARE_ASSIGN_OR_RETURN(const bool needed, NeedsMaking(move, placing.to));
    if (needed) moves.push_back(move);
  }
  for (const Move& move : moves) KVSHARE_RETURN_IF_ERROR(Make(move, placing));
  return {};
}

}  // namespace kvshare::graph
