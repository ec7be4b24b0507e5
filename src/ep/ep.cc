#include "ep/ep.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <set>
#include <string_view>
#include <utility>

#include "core/ops.h"
#include "ep/alias.h"
#include "ep/mask_group.h"
#include "ep/ort_model.h"
#include "graph/graph.h"
#include "kvshare/provider.h"

namespace kvshare::ep {
namespace {

using ort::FromOrt;

// Whether an output may take over an input's memory.
enum class Reuse {
  kNone,
  kAppends,  // a past's becomes its present's
  kAliases,  // the first input's is the output's as well
};

struct ServedOp {
  const char* domain;
  const char* op;
  int first_version, last_version;
  Reuse reuse;
};

constexpr ServedOp kServed[] = {
    {"com.microsoft", "GroupQueryAttention", 1, 1, Reuse::kAppends},
    {"", "Attention", 1, 25, Reuse::kNone},  // ONNX's is 23 or later; below it is a library's that overrides it
    {"", "Transpose", 13, 25, Reuse::kAliases},
    {"", "Reshape", 14, 25, Reuse::kAliases},
    {"", "Unsqueeze", 13, 25, Reuse::kAliases},
    {"", "Expand", 13, 25, Reuse::kAliases},
};

// Nodes of domain kvshare are not among them: ONNX Runtime runs those as custom ops.
Result<std::vector<AttentionNode>> AttentionNodesOf(const OrtApi& api, const std::vector<const OrtNode*>& nodes) {
  std::vector<AttentionNode> found;
  for (const OrtNode* node : nodes) {
    KVSHARE_ASSIGN_OR_RETURN(const std::string op, OpOf(api, node));
    if (!op.ends_with("Attention")) continue;  // reading a whole node takes long; few nodes are attention
    KVSHARE_ASSIGN_OR_RETURN(GraphNode info, GraphNode::Make(api, node));
    if (info.domain() == graph::kKvshare || ort::FindOp(info.domain(), info.op()) == nullptr) continue;
    std::string output = info.HasOutput(0) ? info.outputs()[0] : "";
    found.push_back({node, std::move(info), std::move(output)});
  }
  return found;
}

constexpr int kPasts[] = {gqa::kPastKey, gqa::kPastValue};
constexpr int kPresents[] = {gqa::kPresentKey, gqa::kPresentValue};

Status Describe(const Host& host, const ServedOp& served, OrtKernelDefBuilder* builder) {
  const OrtEpApi& api = host.ep;
  const auto check = [&](OrtStatus* status) { return FromOrt(host.api, status); };
  KVSHARE_RETURN_IF_ERROR(check(api.KernelDefBuilder_SetOperatorType(builder, served.op)));
  KVSHARE_RETURN_IF_ERROR(check(api.KernelDefBuilder_SetDomain(builder, served.domain)));
  KVSHARE_RETURN_IF_ERROR(
      check(api.KernelDefBuilder_SetSinceVersion(builder, served.first_version, served.last_version)));
  KVSHARE_RETURN_IF_ERROR(check(api.KernelDefBuilder_SetExecutionProvider(builder, kProviderName)));
  constexpr int kFirst[] = {0};
  switch (served.reuse) {
    case Reuse::kNone: break;
    case Reuse::kAppends:
      return check(api.KernelDefBuilder_AddInputOutputMutableAliases(builder, kPasts, kPresents, 2));
    case Reuse::kAliases: return check(api.KernelDefBuilder_AddInputOutputAliases(builder, kFirst, kFirst, 1));
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<ExecutionProvider>> ExecutionProvider::Make(const Host& host, const Options& options,
                                                                   const OrtLogger* logger) {
  std::unique_ptr<ExecutionProvider> made(new ExecutionProvider(host, options, logger));
  KVSHARE_RETURN_IF_ERROR(made->FillRegistry());
  return made;
}

ExecutionProvider::ExecutionProvider(const Host& host, const Options& options, const OrtLogger* logger)
    : OrtEp{}, host_(host), options_(options), logger_(logger) {
  ort_version_supported = kApiVersion;
  GetName = [](const OrtEp*) noexcept { return kProviderName; };
  GetCapability = [](OrtEp* self, const OrtGraph* graph, OrtEpGraphSupportInfo* support) noexcept {
    auto& provider = *static_cast<ExecutionProvider*>(self);
    return ort::Guarded(provider.host_.api, [&] { return provider.Claim(graph, support); });
  };
  Compile = CompileAll;
  ReleaseNodeComputeInfos = [](OrtEp*, OrtNodeComputeInfo** compiled, size_t count) noexcept {
    for (size_t i = 0; i < count; ++i) delete static_cast<MaskGroup*>(compiled[i]);
  };
  GetKernelRegistry = [](OrtEp* self, const OrtKernelRegistry** registry) noexcept -> OrtStatus* {
    *registry = static_cast<ExecutionProvider*>(self)->registry_;
    return nullptr;
  };
}

ExecutionProvider::~ExecutionProvider() {
  if (registry_ != nullptr) host_.ep.ReleaseKernelRegistry(registry_);
}

Status ExecutionProvider::FillRegistry() {
  KVSHARE_RETURN_IF_ERROR(FromOrt(host_.api, host_.ep.CreateKernelRegistry(&registry_)));
  for (const ServedOp& served : kServed) {
    sources_.push_back(
        std::make_unique<KernelSource>(KernelSource{this, served.domain, served.op, served.reuse == Reuse::kAliases}));
    OrtKernelDefBuilder* builder = nullptr;
    OrtKernelDef* definition = nullptr;
    KVSHARE_RETURN_IF_ERROR(FromOrt(host_.api, host_.ep.CreateKernelDefBuilder(&builder)));
    Status status = Describe(host_, served, builder);
    if (status.ok()) status = FromOrt(host_.api, host_.ep.KernelDefBuilder_Build(builder, &definition));
    if (status.ok())
      status = FromOrt(
          host_.api, host_.ep.KernelRegistry_AddKernel(registry_, definition, CreateKernelImpl, sources_.back().get()));
    if (definition != nullptr) host_.ep.ReleaseKernelDef(definition);
    host_.ep.ReleaseKernelDefBuilder(builder);
    KVSHARE_RETURN_IF_ERROR(status);
  }
  return {};
}

Status ExecutionProvider::Claim(const OrtGraph* graph, OrtEpGraphSupportInfo* support) {
  if (options_.provider.mode == ProviderMode::kOff) return {};
  KVSHARE_ASSIGN_OR_RETURN(const auto nodes, NodesOf(host_.api, graph));
  KVSHARE_ASSIGN_OR_RETURN(const std::string device, DeviceProvider(nodes));
  if (!device.empty()) {
    Log(ORT_LOGGING_LEVEL_INFO,
        fmt::format("{}: stands aside; {} has nodes of this model, and keys and values would be copied between the two",
                    kProviderName, device));
    return {};
  }
  const OrtNode* parent = nullptr;
  KVSHARE_RETURN_IF_ERROR(FromOrt(host_.api, host_.api.Graph_GetParentNode(graph, &parent)));
  KVSHARE_ASSIGN_OR_RETURN(const auto attention, AttentionNodesOf(host_.api, nodes));
  if (parent == nullptr) {
    KVSHARE_ASSIGN_OR_RETURN(const bool divided, IsDivided(nodes));
    Claims earlier = std::exchange(claims_, {});
    KVSHARE_RETURN_IF_ERROR(PlanModel(graph, nodes, attention, !divided, support));
    // The nodes that are this provider's were taken by their earlier plans. Their masks may be one node by now.
    if (divided) claims_.TakeOver(std::move(earlier));
    handshake_->Expect(claims_.Readers());
  }
  for (const AttentionNode& node : attention) KVSHARE_RETURN_IF_ERROR(ClaimNode(node, support));
  return {};
}

Status ExecutionProvider::PlanModel(const OrtGraph* graph, const std::vector<const OrtNode*>& nodes,
                                    const std::vector<AttentionNode>& attention, bool may_fuse,
                                    OrtEpGraphSupportInfo* support) {
  KVSHARE_ASSIGN_OR_RETURN(onnx::ModelProto model, ModelOf(host_.api, graph));
  const auto made = graph::Graph::Make(std::move(model), "");
  if (!made.ok()) {
    Log(ORT_LOGGING_LEVEL_WARNING, fmt::format("{}: the model is not understood, its attention nodes are taken as ONNX "
                                               "says: {}",
                                               kProviderName, made.status().message()));
    return {};
  }
  const bool fuses = may_fuse && options_.provider.mode == ProviderMode::kFuse && !options_.sees_parts;
  KVSHARE_RETURN_IF_ERROR(PlanServed(
      *made, attention, {options_.provider.causal_alignment, fuses && !options_.makes_context, fuses}, support));
  KVSHARE_ASSIGN_OR_RETURN(const bool claimed, ClaimHelpers(nodes, support));
  if (!claimed) claims_ = FindClaims(*made, {options_.provider.causal_alignment, false, false});
  ReportClaims();
  return {};
}

// Plans, and plans again without the nodes that have no kernel for their plan. Each turn refuses one more node, so the
// turns end.
Status ExecutionProvider::PlanServed(const graph::Graph& graph, const std::vector<AttentionNode>& attention,
                                     ClaimOptions wanted, OrtEpGraphSupportInfo* support) {
  for (bool all_served = false; !all_served;) {
    claims_ = FindClaims(graph, wanted);
    all_served = true;
    for (const AttentionNode& node : attention) {
      if (!PlanOf(node.output).ReadsOtherwise()) continue;
      KVSHARE_ASSIGN_OR_RETURN(std::string refusal, Refusal(node, support));
      if (refusal.empty()) continue;
      wanted.refused.emplace(node.output, std::move(refusal));
      all_served = false;
    }
  }
  return {};
}

Result<std::string> ExecutionProvider::ProviderOf(const OrtNode* node) const {
  const char* provider = nullptr;
  KVSHARE_RETURN_IF_ERROR(FromOrt(host_.api, host_.api.Node_GetEpName(node, &provider)));
  return std::string(provider != nullptr ? provider : "");
}

Result<bool> ExecutionProvider::IsFree(const OrtNode* node) const {
  KVSHARE_ASSIGN_OR_RETURN(const std::string provider, ProviderOf(node));
  return provider.empty() || provider == kProviderName;
}

Result<bool> ExecutionProvider::IsDivided(const std::vector<const OrtNode*>& nodes) const {
  for (const OrtNode* node : nodes) {
    KVSHARE_ASSIGN_OR_RETURN(const std::string provider, ProviderOf(node));
    if (provider == kProviderName) return true;
  }
  return false;
}

Result<bool> ExecutionProvider::Registered(const OrtNode* node, OrtEpGraphSupportInfo* support) const {
  const OrtKernelDef* definition = nullptr;
  KVSHARE_RETURN_IF_ERROR(FromOrt(host_.api, host_.ep.EpGraphSupportInfo_LookUpKernel(support, node, &definition)));
  return definition != nullptr;
}

Result<bool> ExecutionProvider::ClaimHelpers(const std::vector<const OrtNode*>& nodes, OrtEpGraphSupportInfo* support) {
  const std::set<std::string> grouped(claims_.group.begin(), claims_.group.end());
  std::vector<const OrtNode*> group, aliases;
  for (const OrtNode* node : nodes) {
    KVSHARE_ASSIGN_OR_RETURN(const auto outputs, OutputsOf(host_.api, node));
    if (outputs.empty()) continue;
    KVSHARE_ASSIGN_OR_RETURN(const std::string first, NameOf(host_.api, outputs[0]));
    const bool is_alias = claims_.aliases.contains(first);
    if (!is_alias && !grouped.contains(first)) continue;
    KVSHARE_ASSIGN_OR_RETURN(const bool free, IsFree(node));
    if (!free) return false;
    if (is_alias) {
      KVSHARE_ASSIGN_OR_RETURN(const bool registered, Registered(node, support));
      if (!registered) return false;
    }
    (is_alias ? aliases : group).push_back(node);
  }
  if (group.size() != grouped.size() || aliases.size() != claims_.aliases.size()) return false;
  for (const OrtNode* node : aliases)
    KVSHARE_RETURN_IF_ERROR(FromOrt(host_.api, host_.ep.EpGraphSupportInfo_AddSingleNode(support, node)));
  if (group.empty()) return true;
  OrtNodeFusionOptions options{};
  options.ort_version_supported = kApiVersion;
  KVSHARE_RETURN_IF_ERROR(
      FromOrt(host_.api, host_.ep.EpGraphSupportInfo_AddNodesToFuse(support, group.data(), group.size(), &options)));
  return true;
}

void ExecutionProvider::ReportClaims() {
  for (const std::string& reason : claims_.reasons)
    Log(ORT_LOGGING_LEVEL_INFO, fmt::format("{}: {}", kProviderName, reason));
  if (claims_.repaired.empty() || std::exchange(warned_, true)) return;
  Log(ORT_LOGGING_LEVEL_WARNING,
      fmt::format("{}: repaired: {} borrows keys with is_causal = 1 and no past{}; its last query sees all keys, as "
                  "exporters mean it, not the first key alone, as ONNX says; causal_alignment = spec follows ONNX",
                  kProviderName, claims_.repaired.front(),
                  claims_.repaired.size() > 1 ? fmt::format(" (and {} more)", claims_.repaired.size() - 1) : ""));
}

Result<std::string> ExecutionProvider::Refusal(const AttentionNode& node, OrtEpGraphSupportInfo* support) const {
  KVSHARE_ASSIGN_OR_RETURN(const bool free, IsFree(node.node));
  if (!free) return fmt::format("{} '{}': is another provider's", node.info.op(), node.info.Name());
  const auto kernel = CreateKernel(node.info.domain(), node.info.op(), node.info, PlanOf(node.output), host_.version);
  if (!kernel.ok()) return kernel.status().message();
  KVSHARE_ASSIGN_OR_RETURN(const bool registered, Registered(node.node, support));
  if (!registered)
    return fmt::format("{} '{}': no kernel for the version of this op", node.info.op(), node.info.Name());
  return std::string();
}

Status ExecutionProvider::ClaimNode(const AttentionNode& node, OrtEpGraphSupportInfo* support) {
  std::string refusal;
  // PlanServed has asked for the other nodes.
  if (!PlanOf(node.output).ReadsOtherwise()) {
    KVSHARE_ASSIGN_OR_RETURN(refusal, Refusal(node, support));
  }
  if (refusal.empty()) return FromOrt(host_.api, host_.ep.EpGraphSupportInfo_AddSingleNode(support, node.node));
  Log(ORT_LOGGING_LEVEL_INFO, fmt::format("{}: left to ONNX Runtime: {}", kProviderName, refusal));
  return {};
}

Result<std::string> ExecutionProvider::DeviceProvider(const std::vector<const OrtNode*>& nodes) const {
  for (const OrtNode* node : nodes) {
    KVSHARE_ASSIGN_OR_RETURN(const std::string provider, ProviderOf(node));
    if (!provider.empty() && provider != kProviderName && provider != "CPUExecutionProvider") return provider;
  }
  return std::string();
}

Plan ExecutionProvider::PlanOf(const std::string& output) const {
  const auto found = claims_.plans.find(output);
  return found != claims_.plans.end() ? found->second : Plan{};
}

void ExecutionProvider::Log(OrtLoggingLevel level, const std::string& line) const {
  // A log line that cannot be written is no reason to fail a session.
  static_cast<void>(FromOrt(
      host_.api, host_.api.Logger_LogMessage(logger_, level, line.c_str(), ORT_TSTR("kvshare"), 0, "GetCapability")));
}

Status ExecutionProvider::CompileMasks(const OrtNode* fused, OrtNodeComputeInfo** compiled) {
  std::vector<std::string> inputs, outputs;
  KVSHARE_ASSIGN_OR_RETURN(const auto read, InputsOf(host_.api, fused));
  for (const OrtValueInfo* value : read) {
    KVSHARE_ASSIGN_OR_RETURN(inputs.emplace_back(), NameOf(host_.api, value));
  }
  KVSHARE_ASSIGN_OR_RETURN(const auto written, OutputsOf(host_.api, fused));
  for (const OrtValueInfo* value : written) {
    KVSHARE_ASSIGN_OR_RETURN(outputs.emplace_back(), NameOf(host_.api, value));
  }
  KVSHARE_ASSIGN_OR_RETURN(auto group, MaskGroup::Make(host_.api, claims_.masks, inputs, outputs, handshake_));
  for (const std::string& mask : outputs) handshake_->Made(mask);
  *compiled = group.release();
  return {};
}

OrtStatus* ExecutionProvider::CompileAll(OrtEp* self, const OrtGraph**, const OrtNode** fused, size_t count,
                                         OrtNodeComputeInfo** compiled, OrtNode**) noexcept {
  auto& provider = *static_cast<ExecutionProvider*>(self);
  return ort::Guarded(provider.host_.api, [&]() -> Status {
    for (size_t i = 0; i < count; ++i) KVSHARE_RETURN_IF_ERROR(provider.CompileMasks(fused[i], &compiled[i]));
    return {};
  });
}

OrtStatus* ExecutionProvider::CreateKernelImpl(void* source, const OrtKernelInfo* info,
                                               OrtKernelImpl** kernel) noexcept {
  *kernel = nullptr;
  const auto& from = *static_cast<const KernelSource*>(source);
  ExecutionProvider& provider = *from.provider;
  return ort::Guarded(provider.host_.api, [&]() -> Status {
    const ort::KernelInfo node(provider.host_.api, info);
    const std::string output = node.OutputName(0);
    if (from.is_alias) {
      provider.handshake_->Made(output);
      *kernel = MakeAlias(provider.host_.api, from.op, provider.handshake_);
      return {};
    }
    const Plan plan = provider.PlanOf(output);
    KVSHARE_ASSIGN_OR_RETURN(auto made, CreateKernel(from.domain, from.op, node, plan, provider.host_.version));
    *kernel = WrapKernel(provider.host_.api, std::move(made), plan, provider.handshake_);
    provider.handshake_->Reads(output);
    return {};
  });
}

}  // namespace kvshare::ep
