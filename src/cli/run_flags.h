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

namespace CLI {
class Option;
}

namespace kvshare::cli {

using Pairs = std::vector<std::pair<std::string, std::string>>;

struct RunFlags {
  std::string ort;
  std::string library;
  Pairs entries;
  Pairs extents;
  std::optional<Via> via;

  // What the flags say, in the library's words.
  RunOptions Options() const;
};

// Adds a flag that may be repeated, each time with another key. `type_name`: "KEY=VALUE". `pairs` outlives the parse.
CLI::Option* AddPairs(CLI::App& verb, const std::string& flag, Pairs& pairs, const std::string& type_name,
                      const std::string& description);

// Returns the flags that it added.
std::vector<CLI::Option*> AddRunFlags(CLI::App& verb, RunFlags& flags);

// The ONNX Runtime that the flags name.
Result<std::shared_ptr<const Runtime>> OpenRuntime(const RunFlags& flags);

// `text` with the options that it names as flags.
std::string Spelled(const std::string& text);

// Prints the failure on stderr and returns its exit code: 2 bad input, 3 refused, 5 any other failure.
ExitCode Report(const Status& failure);
// The same of what OpenRuntime returns; the exit code says that no ONNX Runtime was opened.
ExitCode ReportNoOrt(const Status& failure);

}  // namespace kvshare::cli
