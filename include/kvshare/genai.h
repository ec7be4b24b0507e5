// onnxruntime-genai's configuration: which execution provider a model folder runs on.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "kvshare/status.h"

namespace kvshare {

struct GenaiReport {
  std::string config;                // the configuration; written only if `changes` has a line
  std::string backup;                // what it was before; empty where nothing was overwritten
  std::vector<std::string> changes;  // one line each; empty: nothing had to change
};

// Puts kvshare's provider, with `options`, first into the session options of `folder`/genai_config.json. Where the
// decoder has window-sized caches (RewriteOptions::window_caches), the file also says how large they are, and that
// prompts come in chunks that fit. Without `out` the file is edited in place, and its first state is kept as
// genai_config.json.before-kvshare. With `out`, a folder that is absent or empty, the whole folder is copied there and
// only the copy is edited. `progress` is called as a file is copied: its bytes so far, and in all.
// Errors, each before anything is written:
//   kInvalidInput  an option that SetProviderOption does not take, a folder without a readable genai_config.json or
//                  decoder, or an `out` that holds files
//   kRefused       another device's provider is configured, and kvshare's is for the CPU; or onnxruntime-genai has no
//                  place for the caches
// kInternal where writing fails.
Result<GenaiReport> AddGenaiProvider(const std::string& folder, const std::string& out,
                                     const std::map<std::string, std::string>& options,
                                     const std::function<void(uint64_t done, uint64_t bytes)>& progress = {});

// Puts the backup of `folder`/genai_config.json back. kInvalidInput where there is none.
Result<GenaiReport> UndoGenaiProvider(const std::string& folder);

}  // namespace kvshare
