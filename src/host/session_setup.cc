#include "host/session_setup.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl.h>
#include <onnx/onnx-ml.pb.h>

#include <filesystem>
#include <set>

namespace kvshare::host {
namespace {

// The domains that the model imports.
Result<std::set<std::string>> Imports(const std::string& model_path) {
  const int file = open(model_path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return Status::InvalidInput(fmt::format("cannot open '{}'", model_path));
  google::protobuf::io::FileInputStream stream(file);
  stream.SetCloseOnDelete(true);
  onnx::ModelProto model;
  if (!model.ParseFromZeroCopyStream(&stream) || stream.GetErrno() != 0 || !model.has_graph()) {
    return Status::InvalidInput(fmt::format("'{}' is not an ONNX model", model_path));
  }
  std::set<std::string> domains;
  for (const auto& import : model.opset_import()) domains.insert(import.domain());
  return domains;
}

}  // namespace

Result<SessionSetup> SetupFor(const std::string& model_path, Library when, const std::string& library,
                              SessionEntries entries) {
  KVSHARE_ASSIGN_OR_RETURN(const auto imports, Imports(model_path));
  SessionSetup setup{
      .entries = std::move(entries), .library = {}, .imports_microsoft = imports.contains("com.microsoft")};
  if (when == Library::kOnDemand && !imports.contains("kvshare")) return setup;
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(library, ignored)) {
    return Status::Refused(fmt::format("no library at '{}'; name libkvshare_ort.so with --lib", library));
  }
  setup.library = std::filesystem::absolute(library).string();
  return setup;
}

}  // namespace kvshare::host
