// Which nodes ran here, and how often: ORT's profile cannot tell.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>

namespace kvshare::ort {

// The counters of one node, for the life of the process; sessions that hold equal nodes share them.
class NodeStats {
 public:
  // Counts a call served here by `kernel`, a string of static storage.
  void Ran(const char* kernel) {
    kernel_.store(kernel, std::memory_order_relaxed);
    ran_.fetch_add(1, std::memory_order_relaxed);
  }

 private:
  friend std::string StatsJson();
  friend void ResetStats();

  std::atomic<int64_t> ran_{0};
  std::atomic<const char*> kernel_{""};
};

// Finds or makes the entry; called when ORT creates a kernel.
NodeStats& StatsOf(std::string_view domain, std::string_view op, std::string_view node);

// {"version", "simd", "ran", "scratch_bytes", "nodes": [{"domain", "op", "node", "kernel", "ran"}]}
std::string StatsJson();
// Sets every counter to zero; nodes stay listed.
void ResetStats();

}  // namespace kvshare::ort
