#include "host/library_stats.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>

namespace kvshare::host {
namespace {

using Object = google::protobuf::Struct;
using google::protobuf::Value;

// Absent members read as empty, so that a newer or older library is still understood.
const Value& Member(const Object& object, const char* name) {
  const auto found = object.fields().find(name);
  return found == object.fields().end() ? Value::default_instance() : found->second;
}

int64_t Count(const Value& value) { return static_cast<int64_t>(value.number_value()); }

NodeCount NodeOf(const Object& object) {
  NodeCount node;
  node.domain = Member(object, "domain").string_value();
  node.op = Member(object, "op").string_value();
  node.node = Member(object, "node").string_value();
  node.kernel = Member(object, "kernel").string_value();
  node.ran = Count(Member(object, "ran"));
  return node;
}

}  // namespace

Result<LibraryStats> ParseStats(const std::string& json) {
  Object object;
  const auto parsed = google::protobuf::util::JsonStringToMessage(json, &object);
  if (!parsed.ok()) return Status::InvalidInput(fmt::format("kvshare's counters are no JSON: {}", parsed.ToString()));
  LibraryStats stats;
  stats.version = Member(object, "version").string_value();
  stats.simd = Member(object, "simd").string_value();
  for (const Value& node : Member(object, "nodes").list_value().values())
    stats.nodes.push_back(NodeOf(node.struct_value()));
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
