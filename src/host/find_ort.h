// Where ONNX Runtime's shared library lies.
#pragma once

#include <string>

#include "kvshare/status.h"

namespace kvshare::host {

// `path` is what the user asked for: a shared library, or a folder of an installed or unpacked wheel. Empty: the
// environment's KVSHARE_ORT, else the wheel in .venv, of the current folder or of a folder above this executable.
Result<std::string> FindOrt(const std::string& path);

// The folder of the running executable.
std::string ExecutableFolder();

}  // namespace kvshare::host
