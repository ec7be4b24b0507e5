// Released ONNX Runtime, opened at run time: sessions and runs for the command line. Nothing links ONNX Runtime.
//
//   KVSHARE_ASSIGN_OR_RETURN(const auto ort, OrtHost::Open(file));
//   KVSHARE_ASSIGN_OR_RETURN(Session session, Session::Create(ort, "model.onnx", {.library = "libkvshare_ort.so"}));
//   KVSHARE_ASSIGN_OR_RETURN(NamedTensors outputs, session.Run(feeds));
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "kvshare/runner.h"
#include "kvshare/status.h"

struct OrtApi;
struct OrtEnv;
struct OrtSession;
struct OrtSessionOptions;

namespace kvshare::host {

// One loaded ONNX Runtime library. It stays loaded to the end of the process: ONNX Runtime cannot be unloaded safely.
class OrtHost final : public Runtime, public std::enable_shared_from_this<OrtHost> {
 public:
  // Loads the shared library `file` (see FindOrt). Errors: kInvalidInput.
  static Result<std::shared_ptr<const OrtHost>> Open(const std::string& file);
  OrtHost(const OrtHost&) = delete;
  OrtHost& operator=(const OrtHost&) = delete;
  ~OrtHost() override;

  Result<std::unique_ptr<Runner>> Load(const std::string& model_path, const SessionSetup& setup) const override;
  std::string version() const override { return version_; }
  std::string where() const override { return file_; }
  const OrtApi& api() const { return *api_; }
  const OrtEnv* env() const { return env_; }

  // Puts kvshare's execution provider, from the shared library `file`, in front of the session's others. kRefused where
  // this ONNX Runtime takes no such libraries, or `file` has no such provider.
  Status AppendProvider(const std::string& file, OrtSessionOptions* options) const;

 private:
  OrtHost() = default;
  Status RegisterProviders(const OrtApi& api, const std::string& file) const;

  std::string file_;
  std::string version_;
  const OrtApi* (*get_api_)(uint32_t version) = nullptr;
  const OrtApi* api_ = nullptr;
  OrtEnv* env_ = nullptr;
  mutable std::mutex mutex_;
  mutable std::set<std::string> providers_;  // the provider libraries that the environment has
};

class Session final : public Runner {
 public:
  // What Runtime::Load does, with its errors.
  static Result<Session> Create(std::shared_ptr<const OrtHost> ort, const std::string& model_path,
                                const SessionSetup& setup);
  // With options of the caller's own. `model`: SessionSetup::model.
  static Result<Session> Make(std::shared_ptr<const OrtHost> ort, const std::string& model_path,
                              const OrtSessionOptions* options, const std::string& model = {});
  Session(Session&& other) noexcept;
  Session& operator=(Session&&) = delete;
  ~Session() override;

  const Signature& Describe() const override { return signature_; }
  Result<NamedTensors> Run(const NamedTensors& feeds) const override;

 private:
  Session() = default;
  std::shared_ptr<const OrtHost> ort_;
  OrtSession* session_ = nullptr;
  Signature signature_;
};

}  // namespace kvshare::host
