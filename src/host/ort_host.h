// Released ONNX Runtime, opened at run time: sessions and runs for the command line. Nothing links ONNX Runtime.
//
//   KVSHARE_ASSIGN_OR_RETURN(const auto ort, OrtHost::Open(file));
//   KVSHARE_ASSIGN_OR_RETURN(Session session, Session::Create(ort, "model.onnx", {.library = "libkvshare_ort.so"}));
//   KVSHARE_ASSIGN_OR_RETURN(NamedTensors outputs, session.Run(feeds));
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "host/npz.h"
#include "host/tensor.h"
#include "kvshare/status.h"

struct OrtApi;
struct OrtEnv;
struct OrtSession;

namespace kvshare::host {

// One loaded ONNX Runtime library. It stays loaded to the end of the process: ONNX Runtime cannot be unloaded safely.
class OrtHost {
 public:
  // Loads the shared library `file` (see FindOrt). Errors: kInvalidInput.
  static Result<std::shared_ptr<const OrtHost>> Open(const std::string& file);
  OrtHost(const OrtHost&) = delete;
  OrtHost& operator=(const OrtHost&) = delete;
  ~OrtHost();

  const std::string& file() const { return file_; }
  const std::string& version() const { return version_; }
  const OrtApi& api() const { return *api_; }
  const OrtEnv* env() const { return env_; }

 private:
  OrtHost() = default;
  std::string file_;
  std::string version_;
  const OrtApi* api_ = nullptr;
  OrtEnv* env_ = nullptr;
};

// A tensor input or output of a model.
struct ValueInfo {
  std::string name;
  DType type = DType::kF32;
  std::vector<int64_t> shape;        // -1 where symbolic
  std::vector<std::string> symbols;  // the names of symbolic extents, else ""
};

using SessionEntries = std::vector<std::pair<std::string, std::string>>;

struct SessionSetup {
  SessionEntries entries;         // set before the library is registered, the only moment at which it reads them
  std::string library;            // a custom-op library to register; empty: none
  bool imports_microsoft = true;  // the model imports com.microsoft
};

class Session {
 public:
  // Loads a model on the CPU. kInvalidInput where the file is missing or no model, kRefused where this ONNX Runtime
  // does not take it.
  static Result<Session> Create(std::shared_ptr<const OrtHost> ort, const std::string& model_path,
                                const SessionSetup& setup);
  Session(Session&& other) noexcept;
  Session& operator=(Session&&) = delete;
  ~Session();

  const std::vector<ValueInfo>& inputs() const { return inputs_; }
  const std::vector<ValueInfo>& outputs() const { return outputs_; }

  // One run for all outputs. `feeds` may hold more than the model's inputs; the rest is not passed on.
  Result<NamedTensors> Run(const NamedTensors& feeds) const;

 private:
  Session() = default;
  std::shared_ptr<const OrtHost> ort_;
  OrtSession* session_ = nullptr;
  std::vector<ValueInfo> inputs_;
  std::vector<ValueInfo> outputs_;
};

}  // namespace kvshare::host
