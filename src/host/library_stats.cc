#include "host/library_stats.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace kvshare::host {
namespace {

using nlohmann::json;

std::string Text(const json& object, const char* name) {
  const auto found = object.find(name);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

int64_t Count(const json& object, const char* name) {
  const auto found = object.find(name);
  return found != object.end() && found->is_number_integer() ? found->get<int64_t>() : 0;
}

}  // namespace

// Absent members read as empty, so that a newer or older library is still understood.
Result<LibraryStats> ParseStats(const std::string& text) {
  const json object = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return Status::InvalidInput("kvshare's counters are no JSON object");
  LibraryStats stats;
  stats.version = Text(object, "version");
  stats.simd = Text(object, "simd");
  for (const json& node : object.value("nodes", json::array()))
    stats.nodes.push_back(
        {Text(node, "domain"), Text(node, "op"), Text(node, "node"), Text(node, "kernel"), Count(node, "ran")});
  return stats;
}

Result<KvshareLibrary> KvshareLibrary::Open(const std::string& file) {
  void* library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (library == nullptr) return Status::InvalidInput(fmt::format("cannot load the library: {}", dlerror()));
  KvshareLibrary opened;
  opened.json_ = reinterpret_cast<decltype(opened.json_)>(dlsym(library, "kvshare_stats_json"));
  opened.reset_ = reinterpret_cast<decltype(opened.reset_)>(dlsym(library, "kvshare_stats_reset"));
  if (opened.json_ == nullptr || opened.reset_ == nullptr) {
    return Status::InvalidInput(fmt::format("'{}' is no kvshare library: it exports no counters", file));
  }
  return opened;
}

Result<LibraryStats> KvshareLibrary::Stats() const {
  std::string json;
  // Asked again where another thread made the text longer in between.
  for (size_t needed = json_(nullptr, 0); needed > json.size(); needed = json_(json.data(), json.size()))
    json.resize(needed);
  if (json.empty()) return Status::Internal("the library could not write its counters: out of memory");
  json.resize(json.find('\0'));
  return ParseStats(json);
}

}  // namespace kvshare::host
