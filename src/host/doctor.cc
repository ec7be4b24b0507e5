#include "kvshare/doctor.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <set>

#include "host/decoder.h"
#include "host/library_stats.h"
#include "host/model_facts.h"

namespace kvshare {
namespace {

using host::Decoder;
using host::Feeds;
using host::KnownInputs;
using host::Step;

// New tokens of a model that is run once: and any extent that nothing tells.
constexpr int64_t kTokensOfOneRun = 8;

Status RunDecoder(std::unique_ptr<Runner> runner, const KnownInputs& known, const RandomTokens& tokens) {
  KVSHARE_ASSIGN_OR_RETURN(Decoder decoder, Decoder::Create(std::move(runner), known));
  KVSHARE_ASSIGN_OR_RETURN(const auto steps, host::RandomSteps(tokens, decoder.feeds(), decoder.vocabulary()));
  for (const Step& step : steps) {
    const auto logits = decoder.Logits(step);
    if (!logits.ok()) return logits.status();
  }
  return {};
}

Status RunOnce(const Runner& runner, const Feeds& feeds) {
  const Step step{.batch = 1, .tokens = kTokensOfOneRun, .past = 0, .given = {}};
  KVSHARE_ASSIGN_OR_RETURN(NamedTensors values, feeds.Make(step, /*seed=*/1));
  KVSHARE_ASSIGN_OR_RETURN(NamedTensors states, feeds.FirstStates(step));
  values.merge(std::move(states));
  const auto outputs = runner.Run(values);
  return outputs.ok() ? Status() : outputs.status();
}

// The failure of a run; a refusal also says what else can be done.
Status Advise(const Status& failure, const Inspection& inspection) {
  if (failure.ok() || failure.code() != StatusCode::kRefused) return failure;
  return Status::Refused(fmt::format(
      "the inputs doctor invents do not suit this model ({}); run your own program with KVSHARE_STATS=1 in "
      "its environment: the library prints the same counters when it ends{}{}",
      failure.message(), inspection.layers.empty() ? "; " : "", inspection.layers.empty() ? kNothingToServe : ""));
}

std::string NameOfOp(const NodeCount& node) {
  return fmt::format("{}::{}", node.domain.empty() ? "ai.onnx" : node.domain, node.op);
}

}  // namespace

int64_t Diagnosis::NodesHere() const {
  return std::count_if(stats.nodes.begin(), stats.nodes.end(), [](const NodeCount& node) { return node.ran > 0; });
}

std::string DropInFor(const Inspection& inspection) {
  bool has_gqa = false;
  bool has_attention = false;
  for (const AttentionLayer& layer : inspection.layers) {
    if (layer.domain == "kvshare") continue;  // is kvshare's without an entry
    (layer.form == LayerForm::kGroupQueryAttention ? has_gqa : has_attention) = true;
  }
  // A model without com.microsoft's op need not import that domain. Where it does not, replacing that op breaks others
  // of the domain (docs/ops.md, The import condition).
  if (has_gqa) return "1";
  return has_attention ? "attention" : "";
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

Result<Diagnosis> Diagnose(const std::string& model_path, const RunOptions& options, const Runtime& runtime) {
  KVSHARE_ASSIGN_OR_RETURN(const Inspection inspection, Inspect(model_path));
  RunOptions always = options;
  always.via = host::ViaFor(inspection, options, runtime.version());
  KVSHARE_ASSIGN_OR_RETURN(const SessionSetup setup, host::SetupFor(inspection, always));
  const std::string& file = setup.provider.empty() ? setup.library : setup.provider;
  KVSHARE_ASSIGN_OR_RETURN(const auto library, host::KvshareLibrary::Open(file));
  library.ResetStats();
  KVSHARE_ASSIGN_OR_RETURN(std::unique_ptr<Runner> runner, runtime.Load(model_path, setup));
  const KnownInputs known = host::KnownInputsOf(inspection, options.extents);
  KVSHARE_ASSIGN_OR_RETURN(const Feeds feeds, Feeds::Create(runner->Describe(), known));

  Diagnosis diagnosis;
  diagnosis.invented = feeds.invented();
  diagnosis.library = file;
  diagnosis.via = always.via;
  diagnosis.entries = setup.entries;
  diagnosis.runtime = runtime.version();
  diagnosis.runtime_where = runtime.where();
  diagnosis.drop_in = DropInFor(inspection);
  diagnosis.warnings = inspection.warnings;
  if (feeds.HasPrompt() && feeds.HasStates()) {
    const RandomTokens tokens{.seed = 1, .prompt = 24, .steps = 1};
    diagnosis.workload = fmt::format("random tokens: a prefill of {}, then one decode step", tokens.prompt);
    KVSHARE_RETURN_IF_ERROR(Advise(RunDecoder(std::move(runner), known, tokens), inspection));
  } else {
    diagnosis.workload = "one run with random inputs";
    KVSHARE_RETURN_IF_ERROR(Advise(RunOnce(*runner, feeds), inspection));
  }
  KVSHARE_ASSIGN_OR_RETURN(diagnosis.stats, library.Stats());
  return diagnosis;
}

}  // namespace kvshare
