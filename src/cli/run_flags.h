// The flags of every verb that runs a model, and how a failure is told.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cli/verbs.h"
#include "kvshare/runner.h"
#include "kvshare/status.h"
#include "kvshare/verify.h"

namespace kvshare::cli {

struct RunFlags {
  std::string ort;
  std::string library;
  std::vector<std::string> entries;
  std::vector<std::string> extents;
  std::optional<Via> via;

  // What the flags say, in the library's words.
  RunOptions Options() const;
};

// A KEY=VALUE flag: what is wrong with it, or nothing; and its two parts.
std::string CheckPair(const std::string& pair);
std::pair<std::string, std::string> SplitPair(const std::string& pair);

void AddRunFlags(CLI::App& verb, RunFlags& flags);

// The ONNX Runtime that the flags name.
Result<std::shared_ptr<const Runtime>> OpenRuntime(const RunFlags& flags);

// `text` with the options that it names as flags.
std::string Spelled(const std::string& text);

// Prints the failure on stderr and returns its exit code: 2 bad input, 3 refused, 5 any other failure.
ExitCode Report(const Status& failure);
// The same of what OpenRuntime returns; the exit code says that no ONNX Runtime was opened.
ExitCode ReportNoOrt(const Status& failure);

}  // namespace kvshare::cli
