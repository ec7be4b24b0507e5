// The counters of a kvshare library.
#pragma once

#include <string>

#include "kvshare/doctor.h"

namespace kvshare::host {

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
