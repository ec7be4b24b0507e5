#include "ort/stats.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <tuple>
#include <utility>

#include "kvshare/attend.h"
#include "kvshare/version.h"
#include "ort/scratch.h"

namespace kvshare::ort {
namespace {

using NodeKey = std::tuple<std::string, std::string, std::string>;  // domain, op, node

struct Registry {
  std::mutex mutex;
  std::map<NodeKey, NodeStats, std::less<>> nodes;

  ~Registry() {
    const char* wanted = std::getenv("KVSHARE_STATS");
    if (wanted != nullptr && std::strcmp(wanted, "1") == 0) std::fprintf(stderr, "kvshare: %s\n", StatsJson().c_str());
  }
};

// The libraries are linked with -z nodelete, so this lives until the process exits.
Registry& TheRegistry() {
  static Registry registry;
  return registry;
}

}  // namespace

NodeStats& StatsOf(std::string_view domain, std::string_view op, std::string_view node) {
  Registry& registry = TheRegistry();
  const std::lock_guard lock(registry.mutex);
  return registry.nodes[NodeKey(domain, op, node)];  // map nodes never move
}

std::string StatsJson() {
  using Json = nlohmann::ordered_json;
  Registry& registry = TheRegistry();
  const std::lock_guard lock(registry.mutex);
  int64_t all_ran = 0;
  Json nodes = Json::array();
  for (auto& [key, stats] : registry.nodes) {
    const auto& [domain, op, node] = key;
    const int64_t ran = stats.ran_.load(std::memory_order_relaxed);
    all_ran += ran;
    nodes.push_back({{"domain", domain},
                     {"op", op},
                     {"node", node},
                     {"kernel", stats.kernel_.load(std::memory_order_relaxed)},
                     {"ran", ran}});
  }
  const Json all = {{"version", kVersion},
                    {"simd", SimdTarget()},
                    {"ran", all_ran},
                    {"scratch_bytes", Scratch::Pool().kept_bytes()},
                    {"nodes", std::move(nodes)}};
  // A model's names are bytes: what is no UTF-8 in them becomes U+FFFD.
  return all.dump(-1, ' ', false, Json::error_handler_t::replace);
}

void ResetStats() {
  Registry& registry = TheRegistry();
  const std::lock_guard lock(registry.mutex);
  for (auto& [key, stats] : registry.nodes) {
    stats.ran_.store(0, std::memory_order_relaxed);
  }
}

}  // namespace kvshare::ort

extern "C" {

// Writes the counters as JSON, cut to `size` bytes with a terminating zero; returns the bytes needed with the zero.
// A null buffer only asks. 0: out of memory.
[[gnu::visibility("default")]] size_t kvshare_stats_json(char* buffer, size_t size) {
  try {
    const std::string json = kvshare::ort::StatsJson();
    if (buffer != nullptr && size > 0) {
      const size_t n = std::min(size - 1, json.size());
      std::memcpy(buffer, json.data(), n);
      buffer[n] = '\0';
    }
    return json.size() + 1;
  } catch (...) {
    return 0;
  }
}

// Sets every counter to zero.
[[gnu::visibility("default")]] void kvshare_stats_reset() {
  try {
    kvshare::ort::ResetStats();
  } catch (...) {  // a lock that fails leaves the counters as they are
  }
}

[[gnu::visibility("default")]] const char* kvshare_version() { return kvshare::kVersion; }
}
