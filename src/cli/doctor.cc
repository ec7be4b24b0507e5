#include "host/doctor.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>

#include "cli/caches.h"
#include "cli/run_flags.h"
#include "cli/verbs.h"
#include "kvshare/rewrite.h"

namespace kvshare::cli {
namespace {

// {}: the value of kvshare.drop_in.
constexpr const char* kOrderRule =
    "Order: a session entry counts only if it is set before the library is registered; set later it is ignored\n"
    "silently. doctor sets its --entry flags first:\n"
    "  options.add_session_config_entry(\"kvshare.drop_in\", \"{}\")     # 1. entries\n"
    "  options.register_custom_ops_library(\"libkvshare_ort.so\")     # 2. the library\n"
    "  onnxruntime.InferenceSession(model, options)                 # 3. the session\n";

constexpr const char* kNothingToServe =
    "No node ran in kvshare: the model has no GroupQueryAttention and no Attention, the ops that it serves. It does "
    "not\n"
    "serve MultiHeadAttention, nor attention made of MatMul and Softmax (PyTorch exports Attention from opset 23).\n";

// What to replace in the model as it is: a model without com.microsoft's op need not import that domain.
const char* DropIn(const Inspection& inspection) {
  const bool gqa = std::any_of(inspection.layers.begin(), inspection.layers.end(),
                               [](const AttentionLayer& l) { return l.form == LayerForm::kGroupQueryAttention; });
  return gqa || inspection.layers.empty() ? "1" : "attention";
}

std::string NothingHere(const Inspection& inspection) {
  if (inspection.layers.empty()) return kNothingToServe;
  return fmt::format(
      "No node ran in kvshare. Either rewrite the model (kvshare rewrite MODEL -o OUT --to kvshare), or let the "
      "library\n"
      "replace ONNX Runtime's ops in the model as it is (session entry kvshare.drop_in={0}; here: --entry "
      "kvshare.drop_in={0}).\n",
      DropIn(inspection));
}

void PrintHeader(const host::OrtHost& ort, const RunFlags& flags, const host::SessionSetup& setup,
                 const host::Diagnosis& diagnosis) {
  fmt::print("{:<14}{}  ({})\n", "ONNX Runtime", ort.version(), ort.file());
  fmt::print("{:<14}kvshare {}, SIMD target {}  ({})\n", "library", diagnosis.stats.version, diagnosis.stats.simd,
             setup.library);
  fmt::print("{:<14}{}\n", "entries",
             flags.entries.empty() ? "none" : fmt::format("{}", fmt::join(flags.entries, " ")));
  fmt::print("{:<14}{}\n", "ran", diagnosis.workload);
}

void PrintNodes(const host::LibraryStats& stats) {
  fmt::print("\n{:<38}{:>6}{:>8}  kernels\n", "op", "nodes", "calls");
  for (const host::OpSummary& op : host::SummarizeOps(stats)) {
    fmt::print("{:<38}{:>6}{:>8}  {}\n", op.op, op.nodes, op.ran, op.kernels);
  }
}

// What the graph tool finds odd, misspelt attributes among it: a custom op's schema accepts any attribute, so neither
// ONNX Runtime nor the library can tell.
void PrintWarnings(const Inspection& inspection) {
  if (!inspection.warnings.empty()) fmt::print("\nwarnings\n");
  for (const std::string& warning : inspection.warnings) fmt::print("  {}\n", warning);
}

Result<ExitCode> Examine(const std::shared_ptr<const host::OrtHost>& ort, const std::string& model,
                         const RunFlags& flags) {
  KVSHARE_ASSIGN_OR_RETURN(const auto setup,
                           host::SetupFor(model, host::Library::kAlways, flags.LibraryPath(), flags.Entries()));
  KVSHARE_ASSIGN_OR_RETURN(const auto inspection, Inspect(model));
  const auto diagnosed = host::Diagnose(ort, model, setup, CachesOf(inspection));
  if (!diagnosed.ok()) {
    if (inspection.layers.empty()) fmt::print("{}", kNothingToServe);
    return diagnosed.status();
  }
  const host::Diagnosis& diagnosis = *diagnosed;
  PrintHeader(*ort, flags, setup, diagnosis);
  if (!diagnosis.stats.nodes.empty()) PrintNodes(diagnosis.stats);
  const int64_t here = diagnosis.NodesHere();
  fmt::print("\n{} nodes ran in kvshare.\n", here);
  if (here == 0) fmt::print("{}", NothingHere(inspection));
  PrintWarnings(inspection);
  fmt::print("\n");
  fmt::print(fmt::runtime(kOrderRule), DropIn(inspection));
  return here > 0 ? kEqual : kDiffers;
}

ExitCode RunDoctor(const std::string& model, const RunFlags& flags) {
  const auto ort = OpenOrt(flags);
  if (!ort.ok()) {
    Report(ort.status());
    return kNoOrt;
  }
  const auto code = Examine(*ort, model, flags);
  return code.ok() ? *code : Report(code.status());
}

}  // namespace

void AddDoctor(CLI::App& app, int& exit_code) {
  struct Flags {
    std::string model;
    RunFlags run;
  };
  CLI::App* verb =
      app.add_subcommand("doctor", "Run a model on random inputs and tell which nodes kvshare really serves");
  const auto flags = std::make_shared<Flags>();
  verb->add_option("MODEL", flags->model, "ONNX model to examine")->required();
  AddRunFlags(*verb, flags->run);
  verb->footer("Exits with 1 where no node ran in kvshare.");
  verb->callback([flags, &exit_code] { exit_code = RunDoctor(flags->model, flags->run); });
}

}  // namespace kvshare::cli
