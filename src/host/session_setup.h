// How a model wants to be loaded: with kvshare's library or without.
#pragma once

#include <string>

#include "host/ort_host.h"

namespace kvshare::host {

enum class Library {
  kOnDemand,  // registered where the model imports domain kvshare
  kAlways,
};

// Reads which domains `model_path` imports (its external data stays untouched) and chooses. kInvalidInput where the
// file is missing or no ONNX model; kRefused where the library is needed and `library` is not there.
Result<SessionSetup> SetupFor(const std::string& model_path, Library when, const std::string& library,
                              SessionEntries entries);

}  // namespace kvshare::host
