// One session's instance of the provider: what it takes of a graph, and the kernels for that.
#pragma once

#include <onnxruntime_c_api.h>

#include <memory>
#include <string>
#include <vector>

#include "ep/claims.h"
#include "ep/graph_view.h"
#include "ep/handshake.h"
#include "ep/kernels.h"
#include "ep/options.h"
#include "kvshare/status.h"
#include "ort/session_config.h"

namespace kvshare::ep {

// ONNX Runtime's tables of functions, and its version.
struct Host {
  const OrtApi& api;
  const OrtEpApi& ep;
  ort::HostVersion version;
};

// A node that the library may have a kernel for.
struct AttentionNode {
  const OrtNode* node;
  GraphNode info;
  std::string output;  // its first; "" where there is none
};

class ExecutionProvider final : public OrtEp {
 public:
  static Result<std::unique_ptr<ExecutionProvider>> Make(const Host& host, const Options& options,
                                                         const OrtLogger* logger);
  ~ExecutionProvider();

  ExecutionProvider(const ExecutionProvider&) = delete;
  ExecutionProvider& operator=(const ExecutionProvider&) = delete;

 private:
  // An op that the registry has a kernel for: where ORT finds its creator's state.
  struct KernelSource {
    ExecutionProvider* provider;
    std::string domain, op;
    bool is_alias;
  };

  ExecutionProvider(const Host& host, const Options& options, const OrtLogger* logger);
  Status FillRegistry();
  // `graph` may be a body: ONNX Runtime asks for each on its own.
  Status Claim(const OrtGraph* graph, OrtEpGraphSupportInfo* support);
  // Plans of the whole model; of a main graph only. `may_fuse`: also those of mode fuse.
  Status PlanModel(const OrtGraph* graph, const std::vector<const OrtNode*>& nodes,
                   const std::vector<AttentionNode>& attention, bool may_fuse, OrtEpGraphSupportInfo* support);
  // Claims of which each reader of a value with other contents has a kernel here.
  Status PlanServed(const graph::Graph& graph, const std::vector<AttentionNode>& attention, ClaimOptions wanted,
                    OrtEpGraphSupportInfo* support);
  // Why the node stays ONNX Runtime's; "": it has a kernel here for its plan.
  Result<std::string> Refusal(const AttentionNode& node, OrtEpGraphSupportInfo* support) const;
  // The nodes that masks and borrowed caches are planned with. False: ONNX Runtime has another idea of one of them.
  Result<bool> ClaimHelpers(const std::vector<const OrtNode*>& nodes, OrtEpGraphSupportInfo* support);
  // "" where it is nobody's yet.
  Result<std::string> ProviderOf(const OrtNode* node) const;
  // Is the node no other provider's?
  Result<bool> IsFree(const OrtNode* node) const;
  // Has ONNX Runtime divided the graph before, and now asks again? It does so after it has inlined a function.
  Result<bool> IsDivided(const std::vector<const OrtNode*>& nodes) const;
  Result<bool> Registered(const OrtNode* node, OrtEpGraphSupportInfo* support) const;
  void ReportClaims();
  Status ClaimNode(const AttentionNode& node, OrtEpGraphSupportInfo* support);
  // The provider of a device that has nodes of `nodes`; "" where there is none.
  Result<std::string> DeviceProvider(const std::vector<const OrtNode*>& nodes) const;
  Plan PlanOf(const std::string& output) const;
  void Log(OrtLoggingLevel level, const std::string& line) const;
  Status CompileMasks(const OrtNode* fused, OrtNodeComputeInfo** compiled);

  static OrtStatus* ORT_API_CALL CompileAll(OrtEp* self, const OrtGraph** graphs, const OrtNode** fused, size_t count,
                                            OrtNodeComputeInfo** compiled, OrtNode** contexts) noexcept;
  static OrtStatus* ORT_API_CALL CreateKernelImpl(void* source, const OrtKernelInfo* info,
                                                  OrtKernelImpl** kernel) noexcept;

  Host host_;
  Options options_;
  const OrtLogger* logger_;
  OrtKernelRegistry* registry_ = nullptr;
  std::vector<std::unique_ptr<KernelSource>> sources_;
  Claims claims_;
  std::shared_ptr<Handshake> handshake_ = std::make_shared<Handshake>();
  bool warned_ = false;  // of layers that are read otherwise than ONNX says
};

}  // namespace kvshare::ep
