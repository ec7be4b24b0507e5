// Runs models for verify, doctor and calibrate: in an ONNX Runtime that kvshare opens, or in a session of the caller.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kvshare/shapes.h"
#include "kvshare/status.h"
#include "kvshare/tensor.h"

namespace kvshare {

// A tensor input or output of a model.
struct ValueInfo {
  std::string name;
  DType type = DType::kF32;          // kI4 for ONNX's uint8
  std::vector<int64_t> shape;        // -1 where symbolic
  std::vector<std::string> symbols;  // the names of symbolic extents, else ""; as many as `shape` has
};

struct Signature {
  std::vector<ValueInfo> inputs;
  std::vector<ValueInfo> outputs;
};

// One model, ready to run.
class Runner {
 public:
  virtual ~Runner() = default;
  // The same at each call.
  virtual const Signature& Describe() const = 0;
  // One run for all outputs, by name. `feeds` has a value for each input; it may hold more, which is not passed on.
  // kRefused where the model does not take the values.
  virtual Result<NamedTensors> Run(const NamedTensors& feeds) const = 0;
};

using SessionEntries = std::vector<std::pair<std::string, std::string>>;

// How a model wants to be loaded.
struct SessionSetup {
  SessionEntries entries;         // set before the library is registered, the only moment at which it reads them
  std::string library;            // a custom-op library to register; empty: none
  std::string provider = {};      // a library whose KvshareExecutionProvider takes what it can; empty: none
  bool imports_microsoft = true;  // the model imports com.microsoft
  std::string model = {};         // a ModelProto in place of the file; empty: the file
};

// An ONNX Runtime that makes runners.
class Runtime {
 public:
  virtual ~Runtime() = default;
  // Loads a model on the CPU. kInvalidInput where the file is missing or no model, kRefused where this ONNX Runtime
  // does not take it.
  virtual Result<std::unique_ptr<Runner>> Load(const std::string& model_path, const SessionSetup& setup) const = 0;
  virtual std::string version() const = 0;  // "1.32.0"
  virtual std::string where() const = 0;    // its file, or what else tells a reader which one it is
};

// Opens ONNX Runtime's shared library. `path` is that library, or a folder of an installed or unpacked wheel; empty:
// the environment's KVSHARE_ORT, else the wheel in .venv of the current folder, of `near` or of a folder above `near`.
// It stays loaded to the end of the process. kInvalidInput where there is none.
Result<std::shared_ptr<const Runtime>> OpenOnnxRuntime(const std::string& path, const std::string& near);

}  // namespace kvshare
