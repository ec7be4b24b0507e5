#include "graph/model_file.h"

#include <fmt/format.h>
#include <google/protobuf/io/coded_stream.h>

#include <fstream>
#include <limits>

#include "graph/atomic_file.h"
#include "graph/external_data.h"
#include "graph/weights.h"

namespace kvshare::graph {
namespace {

namespace fs = std::filesystem;

// Subgraphs nest by three messages a level (node, attribute, graph).
constexpr int kDeepestMessage = 100;

Result<std::string> ReadFile(const fs::path& path) {
  std::error_code error;
  if (!fs::exists(path, error)) return Status::InvalidInput(fmt::format("'{}': no such file", path.string()));
  if (!fs::is_regular_file(path, error))
    return Status::InvalidInput(fmt::format("'{}': not a regular file", path.string()));
  const uintmax_t size = fs::file_size(path, error);
  if (error) return Status::InvalidInput(fmt::format("'{}': {}", path.string(), error.message()));
  if (size > static_cast<uintmax_t>(std::numeric_limits<int>::max()))
    return Status::InvalidInput(fmt::format("'{}': {} bytes; an ONNX file has at most 2 GiB", path.string(), size));
  std::string bytes(size, '\0');
  std::ifstream file(path, std::ios::binary);
  if (!file.read(bytes.data(), static_cast<std::streamsize>(size)))
    return Status::InvalidInput(fmt::format("'{}': cannot be read", path.string()));
  return bytes;
}

}  // namespace

Result<ModelFile> LoadModel(const fs::path& path) {
  KVSHARE_ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path));
  return ParseModel(bytes, path);
}

Result<ModelFile> ParseModel(std::string_view bytes, const fs::path& path) {
  ModelFile file;
  google::protobuf::io::CodedInputStream stream(reinterpret_cast<const uint8_t*>(bytes.data()),
                                                static_cast<int>(bytes.size()));
  stream.SetRecursionLimit(kDeepestMessage);
  if (!file.model.ParseFromCodedStream(&stream) || !stream.ConsumedEntireMessage())
    return Status::InvalidInput(
        fmt::format("'{}': not an ONNX model (malformed, cut short or nested too deep)", path.string()));
  if (!file.model.has_graph())
    return Status::InvalidInput(fmt::format("'{}': not an ONNX model (it has no graph)", path.string()));
  if (file.model.opset_import_size() == 0)
    return Status::InvalidInput(fmt::format("'{}': not an ONNX model (it imports no operator set)", path.string()));
  file.folder = FolderOf(path);
  KVSHARE_ASSIGN_OR_RETURN(file.locations, CheckExternalData(file.model, path));
  return file;
}

Status SaveModel(onnx::ModelProto model, const ModelFile& file, const fs::path& out, const SaveOptions& options) {
  std::error_code error;
  const fs::path folder = FolderOf(out);
  if (!fs::is_directory(folder, error))
    return Status::InvalidInput(fmt::format("'{}': its folder does not exist", out.string()));
  KVSHARE_RETURN_IF_ERROR(CheckReplaceable(out));
  KVSHARE_ASSIGN_OR_RETURN(const NewLocations locations, NameLocations(file.locations, options.weights_name));
  // The output must not take the place of the weights it refers to.
  for (const auto& [before, after] : locations)
    if (fs::weakly_canonical(folder / after, error) == fs::weakly_canonical(out, error))
      return Status::Refused(fmt::format("'{}': the model's external data has that name", out.string()));
  RenameLocations(model, locations);
  std::string bytes;
  if (!model.SerializeToString(&bytes)) return Status::Internal("the rewritten model exceeds protobuf's 2 GiB");
  KVSHARE_RETURN_IF_ERROR(PlaceWeights(locations, {file.folder, folder, options.link_weights, options.progress}));
  return WriteFileAtomically(out, bytes);
}

}  // namespace kvshare::graph
