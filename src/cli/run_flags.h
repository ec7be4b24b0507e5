// The flags of every verb that runs a model, and how a failure is told.
#pragma once

#include <string>
#include <vector>

#include "cli/verbs.h"
#include "host/ort_host.h"
#include "host/session_setup.h"
#include "kvshare/status.h"

namespace kvshare::cli {

struct RunFlags {
  std::string ort;
  std::string library;
  std::vector<std::string> entries;

  // The library to register: --lib, else libkvshare_ort.so in ../lib beside this executable.
  std::string LibraryPath() const;
  host::SessionEntries Entries() const;
  // --lib or an entry of kvshare's asks for the library even where the model does not need it.
  host::Library WhenLibrary() const;
};

void AddRunFlags(CLI::App& verb, RunFlags& flags);

// The ONNX Runtime that the flags name.
Result<std::shared_ptr<const host::OrtHost>> OpenOrt(const RunFlags& flags);

// Prints the failure on stderr and returns its exit code: 2 bad input, 3 refused, 5 any other failure.
ExitCode Report(const Status& failure);

}  // namespace kvshare::cli
