#include "graph/external_data.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "graph/constants.h"

namespace kvshare::graph {
namespace {

namespace fs = std::filesystem;
using onnx::TensorProto;

void CollectTensors(const onnx::GraphProto& graph, std::vector<const TensorProto*>& tensors);

void CollectTensors(const onnx::NodeProto& node, std::vector<const TensorProto*>& tensors) {
  for (const auto& attribute : node.attribute()) {
    if (attribute.has_t()) tensors.push_back(&attribute.t());
    for (const auto& tensor : attribute.tensors()) tensors.push_back(&tensor);
    if (attribute.has_sparse_tensor()) {
      tensors.push_back(&attribute.sparse_tensor().values());
      tensors.push_back(&attribute.sparse_tensor().indices());
    }
    if (attribute.has_g()) CollectTensors(attribute.g(), tensors);
    for (const auto& graph : attribute.graphs()) CollectTensors(graph, tensors);
  }
}

void CollectTensors(const onnx::GraphProto& graph, std::vector<const TensorProto*>& tensors) {
  for (const auto& tensor : graph.initializer()) tensors.push_back(&tensor);
  for (const auto& sparse : graph.sparse_initializer()) {
    tensors.push_back(&sparse.values());
    tensors.push_back(&sparse.indices());
  }
  for (const auto& node : graph.node()) CollectTensors(node, tensors);
}

Status Bad(const TensorProto& tensor, const std::string& fact) {
  return Status::InvalidInput(fmt::format("tensor '{}': external data {}", tensor.name(), fact));
}

// A non-negative decimal, all of the text.
std::optional<uint64_t> Decimal(const std::string& text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || text.empty()) return std::nullopt;
  return value;
}

// Bytes that the tensor's extents need; nothing where its type is packed or its extents overflow.
std::optional<uint64_t> NeededBytes(const TensorProto& tensor) {
  uint64_t bytes = ElementBytes(tensor.data_type());
  if (bytes == 0) return std::nullopt;
  for (const int64_t dim : tensor.dims())
    if (dim < 0 || __builtin_mul_overflow(bytes, static_cast<uint64_t>(dim), &bytes)) return std::nullopt;
  return bytes;
}

// The folders in which a model's weights may lie once every link is resolved.
struct Home {
  fs::path folder;                // the model's, as it was named: where a location is looked up
  std::vector<fs::path> allowed;  // that folder's real path, and that of the file that the model links to
};

Home HomeOf(const fs::path& model) {
  Home home{FolderOf(model), {}};
  std::error_code error;
  if (auto folder = fs::canonical(home.folder, error); !error) home.allowed.push_back(std::move(folder));
  if (const auto file = fs::canonical(model, error); !error) home.allowed.push_back(file.parent_path());
  return home;
}

// The location's file with every link resolved, if that still lies at home.
Result<fs::path> Resolve(const TensorProto& tensor, const std::string& location, const Home& home) {
  const fs::path relative(location);
  if (location.empty() || location.find('\0') != std::string::npos) return Bad(tensor, "has no usable location");
  if (relative.is_absolute())
    return Bad(tensor, fmt::format("'{}' is an absolute path; needs one inside the model's folder", location));
  for (const auto& part : relative)
    if (part == "..")
      return Bad(tensor, fmt::format("'{}' has '..'; needs a path inside the model's folder", location));
  std::error_code error;
  const fs::path real = fs::canonical(home.folder / relative, error);
  if (error) return Bad(tensor, fmt::format("'{}' cannot be opened: {}", location, error.message()));
  const auto holds = [&](const fs::path& folder) { return LiesIn(real, folder); };
  if (std::none_of(home.allowed.begin(), home.allowed.end(), holds))
    return Bad(tensor, fmt::format("'{}' is a link that leaves the model's folder", location));
  if (!fs::is_regular_file(real, error)) return Bad(tensor, fmt::format("'{}' is not a regular file", location));
  return real;
}

// The part of a file that a tensor takes.
struct Extent {
  fs::path file;
  uint64_t begin = 0;
  uint64_t end = 0;
  const TensorProto* tensor = nullptr;

  auto Place() const { return std::tie(file, begin, end); }
};

Result<Extent> ReadExtent(const TensorProto& tensor, const std::string& location, const fs::path& file) {
  std::error_code error;
  const uint64_t file_bytes = fs::file_size(file, error);
  if (error) return Bad(tensor, fmt::format("'{}' cannot be opened: {}", location, error.message()));
  uint64_t offset = 0;
  if (const auto text = ExternalEntry(tensor, "offset")) {
    const auto value = Decimal(*text);
    if (!value) return Bad(tensor, fmt::format("has offset '{}'; needs a decimal number", *text));
    offset = *value;
  }
  uint64_t length = NeededBytes(tensor).value_or(0);
  if (const auto text = ExternalEntry(tensor, "length")) {
    const auto value = Decimal(*text);
    if (!value) return Bad(tensor, fmt::format("has length '{}'; needs a decimal number", *text));
    if (const auto needed = NeededBytes(tensor); needed && *needed != *value)
      return Bad(tensor, fmt::format("has length {}; its shape and type need {}", *value, *needed));
    length = *value;
  }
  if (offset > file_bytes || length > file_bytes - offset)
    return Bad(tensor,
               fmt::format("takes {} bytes from {} of '{}', which has {}", length, offset, location, file_bytes));
  return Extent{file, offset, offset + length, &tensor};
}

// Tensors may share all their bytes (tied weights), never some.
Status CheckOverlap(std::vector<Extent> extents) {
  std::erase_if(extents, [](const Extent& extent) { return extent.begin == extent.end; });
  std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) { return a.Place() < b.Place(); });
  for (size_t i = 1; i < extents.size(); ++i) {
    const Extent& before = extents[i - 1];
    const Extent& here = extents[i];
    if (before.file == here.file && here.begin < before.end && before.Place() != here.Place())
      return Bad(*here.tensor,
                 fmt::format("from {} to {} overlaps that of tensor '{}' from {} to {}; needs bytes of its "
                             "own, or all of them the same",
                             here.begin, here.end, before.tensor->name(), before.begin, before.end));
  }
  return {};
}

}  // namespace

fs::path FolderOf(const fs::path& path) { return path.has_parent_path() ? path.parent_path() : fs::path("."); }

bool LiesIn(const fs::path& path, const fs::path& folder) {
  return std::mismatch(folder.begin(), folder.end(), path.begin(), path.end()).first == folder.end();
}

std::vector<const TensorProto*> ExternalTensors(const onnx::ModelProto& model) {
  std::vector<const TensorProto*> tensors;
  CollectTensors(model.graph(), tensors);
  for (const auto& function : model.functions())
    for (const auto& node : function.node()) CollectTensors(node, tensors);
  for (const auto& training : model.training_info()) {
    CollectTensors(training.initialization(), tensors);
    CollectTensors(training.algorithm(), tensors);
  }
  std::erase_if(tensors, [](const TensorProto* t) { return t->data_location() != TensorProto::EXTERNAL; });
  return tensors;
}

std::vector<TensorProto*> ExternalTensors(onnx::ModelProto& model) {
  std::vector<TensorProto*> tensors;
  for (const TensorProto* tensor : ExternalTensors(std::as_const(model)))
    tensors.push_back(const_cast<TensorProto*>(tensor));  // parts of `model`, which is not const
  return tensors;
}

Result<std::set<std::string>> CheckExternalData(const onnx::ModelProto& model, const fs::path& path) {
  const Home home = HomeOf(path);
  std::set<std::string> locations;
  std::vector<Extent> extents;
  for (const TensorProto* tensor : ExternalTensors(model)) {
    const std::string location = ExternalEntry(*tensor, "location").value_or("");
    KVSHARE_ASSIGN_OR_RETURN(const fs::path file, Resolve(*tensor, location, home));
    KVSHARE_ASSIGN_OR_RETURN(Extent extent, ReadExtent(*tensor, location, file));
    extents.push_back(std::move(extent));
    locations.insert(location);
  }
  KVSHARE_RETURN_IF_ERROR(CheckOverlap(std::move(extents)));
  return locations;
}

}  // namespace kvshare::graph
