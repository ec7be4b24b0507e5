// What a kvshare library tells about itself: its version, and the counters of the nodes it ran.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kvshare/status.h"

namespace kvshare::host {

struct NodeCount {
  std::string domain;
  std::string op;
  std::string node;
  std::string kernel;  // what served the last call: a SIMD target, or "oracle"
  int64_t ran = 0;     // calls
};

struct LibraryStats {
  std::string version;
  std::string simd;  // the SIMD target chosen on this machine
  std::vector<NodeCount> nodes;
};

// Parses the JSON of kvshare_stats_json().
Result<LibraryStats> ParseStats(const std::string& json);

// A kvshare library, loaded beside ONNX Runtime's own use of it: the counters are those of this process.
class KvshareLibrary {
 public:
  // kInvalidInput where `file` cannot be loaded or exports no counters.
  static Result<KvshareLibrary> Open(const std::string& file);
  void ResetStats() const { reset_(); }
  Result<LibraryStats> Stats() const;

 private:
  KvshareLibrary() = default;
  size_t (*json_)(char* buffer, size_t size) = nullptr;
  void (*reset_)() = nullptr;
};

}  // namespace kvshare::host
