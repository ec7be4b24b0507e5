#include "host/doctor.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <string_view>

namespace kvshare::host {
namespace {

// A symbolic extent that is not the batch; equal symbols get equal extents because all get this one.
constexpr int64_t kInventedExtent = 8;

bool IsDecoder(const Session& session) {
  const auto& inputs = session.inputs();
  const auto has = [&](std::string_view begin) {
    return std::any_of(inputs.begin(), inputs.end(), [&](const ValueInfo& v) { return v.name.starts_with(begin); });
  };
  return has("input_ids") && has("past_key_values");
}

uint64_t PhysicalMemory() {
  return static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

Result<Tensor> Invent(const ValueInfo& input, std::mt19937_64& random) {
  std::vector<int64_t> shape = input.shape;
  for (size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] < 0) shape[i] = input.symbols[i].find("batch") != std::string::npos ? 1 : kInventedExtent;
  }
  const auto bytes = BytesOf(input.type, shape);
  if (!bytes.ok()) return Status::Refused(fmt::format("input '{}': {}", input.name, bytes.status().message()));
  // Linux lends more than there is, and kills who uses it.
  if (*bytes > PhysicalMemory())
    return Status::Refused(fmt::format("input '{}': shape {} takes {} bytes; needs at most {}, this machine's memory",
                                       input.name, ShapeText(shape), *bytes, PhysicalMemory()));
  Tensor tensor = Tensor::Zeros(input.type, shape);
  if (input.type == DType::kBool || input.type == DType::kI32 || input.type == DType::kI64) return tensor;
  if (input.type == DType::kI8 || input.type == DType::kI4) {
    for (std::byte& code : tensor.data) code = static_cast<std::byte>(random() & 0xFF);
    return tensor;
  }
  for (int64_t i = 0; i < tensor.Elements(); ++i)
    StoreElement(tensor.data.data(), input.type, i, static_cast<double>(random() % 2001) / 1000 - 1);
  return tensor;
}

Status RunDecoder(Session session, const Caches& caches, const RandomTokens& tokens) {
  KVSHARE_ASSIGN_OR_RETURN(Decoder decoder, Decoder::Create(std::move(session), caches));
  for (const DecoderStep& step : RandomSteps(tokens, decoder.vocabulary())) {
    const auto logits = decoder.Step(step);
    if (!logits.ok()) return logits.status();
  }
  return {};
}

Status RunOnce(const Session& session) {
  std::mt19937_64 random(1);
  NamedTensors feeds;
  for (const ValueInfo& input : session.inputs()) {
    KVSHARE_ASSIGN_OR_RETURN(feeds[input.name], Invent(input, random));
  }
  const auto outputs = session.Run(feeds);
  if (outputs.ok()) return {};
  return Status::Refused(
      fmt::format("the inputs doctor invents do not suit this model ({}); run your own program with KVSHARE_STATS=1 in "
                  "its environment: the library prints the same counters when it ends",
                  outputs.status().message()));
}

std::string NameOfOp(const NodeCount& node) {
  return fmt::format("{}::{}", node.domain.empty() ? "ai.onnx" : node.domain, node.op);
}

}  // namespace

int64_t Diagnosis::NodesHere() const {
  return std::count_if(stats.nodes.begin(), stats.nodes.end(), [](const NodeCount& node) { return node.ran > 0; });
}

std::vector<OpSummary> SummarizeOps(const LibraryStats& stats) {
  std::map<std::string, OpSummary> by_op;
  std::map<std::string, std::set<std::string>> kernels;
  for (const NodeCount& node : stats.nodes) {
    const std::string op = NameOfOp(node);
    OpSummary& sum = by_op[op];
    sum.op = op;
    ++sum.nodes;
    sum.ran += node.ran;
    if (!node.kernel.empty()) kernels[op].insert(node.kernel);
  }
  std::vector<OpSummary> summaries;
  for (auto& [op, sum] : by_op) {
    sum.kernels = fmt::format("{}", fmt::join(kernels[op], ", "));
    summaries.push_back(std::move(sum));
  }
  return summaries;
}

Result<Diagnosis> Diagnose(const std::shared_ptr<const OrtHost>& ort, const std::string& model_path,
                           const SessionSetup& setup, const Caches& caches) {
  KVSHARE_ASSIGN_OR_RETURN(const KvshareLibrary library, KvshareLibrary::Open(setup.library));
  library.ResetStats();
  KVSHARE_ASSIGN_OR_RETURN(Session session, Session::Create(ort, model_path, setup));
  Diagnosis diagnosis;
  if (IsDecoder(session)) {
    const RandomTokens tokens{.seed = 1, .prompt = 24, .steps = 1};
    diagnosis.workload = fmt::format("random tokens: a prefill of {}, then one decode step", tokens.prompt);
    KVSHARE_RETURN_IF_ERROR(RunDecoder(std::move(session), caches, tokens));
  } else {
    diagnosis.workload = "one run with random inputs";
    KVSHARE_RETURN_IF_ERROR(RunOnce(session));
  }
  KVSHARE_ASSIGN_OR_RETURN(diagnosis.stats, library.Stats());
  return diagnosis;
}

}  // namespace kvshare::host
