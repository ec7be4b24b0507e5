// Where ONNX Runtime's shared library lies.
#pragma once

#include <string>

#include "kvshare/status.h"

namespace kvshare::host {

// `path` is what the user asked for: a shared library, or a folder of an installed or unpacked wheel. Empty: the
// environment's KVSHARE_ORT, else the wheel in .venv of the current folder, of `near` or of a folder above `near`. Of
// several libraries in one folder the one of the latest version.
Result<std::string> FindOrt(const std::string& path, const std::string& near);

}  // namespace kvshare::host
