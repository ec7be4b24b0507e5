// The scratch memory of all kernels of the process.
#pragma once

#include "kvshare/workspace_pool.h"

namespace kvshare::ort {

// One pool for all kernels, since a session runs few of its nodes at a time; given back to the system when the last
// kernel is gone. Each kernel holds one of these.
class Scratch {
 public:
  Scratch();
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  static WorkspacePool& Pool();
};

}  // namespace kvshare::ort
