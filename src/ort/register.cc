// RegisterCustomOps, and the one list of ops and types.
#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "kvshare/version.h"
#include "ort/attention.h"
#include "ort/backends.h"
#include "ort/custom_op.h"
#include "ort/group_query_attention.h"
#include "ort/session_config.h"

namespace kvshare::ort {
namespace {

constexpr auto kF32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr auto kF16 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
constexpr auto kBF16 = ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
constexpr auto kF64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE;
constexpr auto kI8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
constexpr auto kU8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
constexpr auto kF8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FN;

constexpr ONNXTensorElementDataType kGqaT[] = {kF32, kF16, kBF16};
constexpr ONNXTensorElementDataType kGqaCache[] = {kF32, kF16, kBF16, kI8, kU8, kF8};
constexpr ONNXTensorElementDataType kAttentionT[] = {kF32, kF16, kBF16, kF64};

// A schema replaces ORT's whole: a pair of types that is not listed here makes a session fail to load.
constexpr OpRow kOps[] = {
    {"kvshare", "GroupQueryAttention", kGqaInputs, kGqaOutputs, kGqaT, kGqaCache, CreateGqa, InferGqa},
    {"kvshare", "Attention", kAttentionInputs, kAttentionOutputs, kAttentionT, kAttentionT, CreateAttention,
     InferAttention},
    {"com.microsoft", "GroupQueryAttention", kGqaInputs, kGqaOutputs, kGqaT, kGqaCache, CreateGqa, InferGqa},
    {"", "Attention", kOnnxAttentionInputs, kAttentionOutputs, kAttentionT, kAttentionT, CreateAttention,
     InferAttention},
};

bool Wanted(const OpRow& row, const SessionConfig& config) {
  const std::string_view domain = row.domain;
  if (domain == "com.microsoft") return config.gqa;
  return !domain.empty() || config.attention;
}

// The ops and domains of one configuration in one ONNX Runtime. Sessions keep pointers to them, also while the process
// exits: never freed.
struct OpSet {
  std::deque<CustomOp> ops;
  std::map<std::string, OrtCustomOpDomain*> domains;
};

// Every pair of types of one op.
Status AddOps(const OrtApi& api, const OpRow& row, const SessionConfig& config, const Backend& backend,
              OrtCustomOpDomain* domain, OpSet* set) {
  const auto add = [&](ONNXTensorElementDataType t, ONNXTensorElementDataType cache) {
    const CustomOp& op = set->ops.emplace_back(api, row, OpBinding{row.domain, row.op, t, cache, config, &backend});
    return FromOrt(api, api.CustomOpDomain_Add(domain, &op));
  };
  for (const auto t : row.t) {
    // ORT takes the first op that fits; where a node has no cache input, its presents have the query's type.
    KVSHARE_RETURN_IF_ERROR(add(t, t));
    for (const auto cache : row.cache)
      if (cache != t) KVSHARE_RETURN_IF_ERROR(add(t, cache));
  }
  // Last, what fits nothing above, so that the refusal can name the input.
  constexpr auto kAnyType = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  for (const auto t : row.t) KVSHARE_RETURN_IF_ERROR(add(t, kAnyType));
  return add(kAnyType, kAnyType);
}

Status Fill(const OrtApi& api, const SessionConfig& config, OpSet* set) {
  for (const OpRow& row : kOps) {
    if (!Wanted(row, config)) continue;
    OrtCustomOpDomain*& domain = set->domains[row.domain];
    if (domain == nullptr) KVSHARE_RETURN_IF_ERROR(FromOrt(api, api.CreateCustomOpDomain(row.domain, &domain)));
    for (const Backend* backend : Backends()) KVSHARE_RETURN_IF_ERROR(AddOps(api, row, config, *backend, domain, set));
  }
  return {};
}

Result<OpSet*> SetFor(const OrtApi& api, const SessionConfig& config) {
  static std::mutex mutex;
  static auto* sets = new std::map<std::pair<const OrtApi*, SessionConfig>, OpSet*>();
  const std::lock_guard lock(mutex);
  OpSet*& set = (*sets)[{&api, config}];
  if (set == nullptr) {
    auto made = std::make_unique<OpSet>();
    KVSHARE_RETURN_IF_ERROR(Fill(api, config, made.get()));
    set = made.release();
  }
  return set;
}

Status Register(const OrtApi& api, OrtSessionOptions* options, HostVersion host) {
  KVSHARE_ASSIGN_OR_RETURN(const SessionConfig config, ReadSessionConfig(api, options, host));
  KVSHARE_ASSIGN_OR_RETURN(const auto domains, DomainsOf(api, config));
  for (OrtCustomOpDomain* domain : domains)
    KVSHARE_RETURN_IF_ERROR(FromOrt(api, api.AddCustomOpDomain(options, domain)));
  AnnounceAtFirstKernel(fmt::format("kvshare {}: drop-in {}, causal alignment {}, SIMD target {}", kVersion,
                                    config.DropInText(), config.lower_right ? "lower_right" : "spec", SimdTarget()));
  return {};
}

}  // namespace

const OpRow* FindOp(std::string_view domain, std::string_view op) {
  const auto* const row = std::ranges::find_if(kOps, [&](const OpRow& r) { return r.domain == domain && r.op == op; });
  return row == std::end(kOps) ? nullptr : row;
}

Result<std::vector<OrtCustomOpDomain*>> DomainsOf(const OrtApi& api, const SessionConfig& config) {
  KVSHARE_ASSIGN_OR_RETURN(OpSet * set, SetFor(api, config));
  std::vector<OrtCustomOpDomain*> domains;
  for (const auto& [name, domain] : set->domains) domains.push_back(domain);
  return domains;
}

}  // namespace kvshare::ort

extern "C" {

// ONNX Runtime's entry: adds domain kvshare, and drop-in ops where the session asks for them.
[[gnu::visibility("default")]] OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options,
                                                                         const OrtApiBase* base) {
  using namespace kvshare::ort;
  const OrtApi* api = base->GetApi(kApiVersion);
  if (api == nullptr)  // a status is the first entry of the table since version 1
    return Guarded(*base->GetApi(1), [&] {
      return kvshare::Status::Refused(
          fmt::format("kvshare {}: ONNX Runtime {} has no C API version {}; needs ONNX Runtime 1.18 or later",
                      kvshare::kVersion, base->GetVersionString(), kApiVersion));
    });
  return Guarded(*api, [&] { return Register(*api, options, ParseHostVersion(base->GetVersionString())); });
}
}
