// What the graph tool knows of a model, for the host to load and feed it. The model is parsed once.
#pragma once

#include <string>

#include "host/feeds.h"
#include "kvshare/rewrite.h"
#include "kvshare/verify.h"

namespace kvshare::host {

// What is known of a model's inputs: from its graph, and from the caller's `named` extents.
KnownInputs KnownInputsOf(const Inspection& inspection, const std::map<std::string, int64_t>& named);

// How kvshare comes into a session of ONNX Runtime `version`, which is to be examined: what `options` says, or what
// suits the model. Entries of kvshare's are for its operators.
Via ViaFor(const Inspection& inspection, const RunOptions& options, const std::string& version);

// How the model wants to be loaded. kRefused where the library is needed and not there; kInvalidInput where an entry
// contradicts `options.via`.
Result<SessionSetup> SetupFor(const Inspection& inspection, const RunOptions& options);

}  // namespace kvshare::host
