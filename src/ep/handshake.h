// Proof that a value whose contents are other than its type and shape say is made and read by this provider alone: the
// maker and all readers must be kernels of this provider. Filled while a session is made, then only read.
#pragma once

#include <atomic>
#include <set>
#include <string>
#include <utility>

#include "ep/plan.h"
#include "kvshare/status.h"

namespace kvshare::ep {

class Handshake {
 public:
  // Attention nodes, by their first output, that will read such values.
  void Expect(std::set<std::string> readers) { expected_ = std::move(readers); }
  void Made(std::string value) { made_.insert(std::move(value)); }
  void Reads(std::string reader) { readers_.insert(std::move(reader)); }

  // kInternal: ONNX Runtime has given another provider what makes a value that `plan` reads.
  Status CheckMade(const Plan& plan) const;
  // kInternal: ONNX Runtime has given another provider an expected reader.
  Status CheckReaders() const;

 private:
  std::set<std::string> expected_, made_, readers_;
};

// A check of which one success is enough, by whichever thread has it first.
class CheckedOnce {
 public:
  template <typename Check>
  Status operator()(const Check& check) {
    if (held_.load(std::memory_order_relaxed)) return {};
    KVSHARE_RETURN_IF_ERROR(check());
    held_.store(true, std::memory_order_relaxed);
    return {};
  }

 private:
  std::atomic<bool> held_ = false;
};

}  // namespace kvshare::ep
