#include "kvshare/verify.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "cli/run_flags.h"
#include "cli/verbs.h"
#include "report/progress.h"
#include "report/report.h"

namespace kvshare::cli {
namespace {

struct VerifyFlags {
  std::string model;
  VerifyOptions options;
  RunFlags run;
  bool json = false;
};

ExitCode RunVerify(const VerifyFlags& flags) {
  const auto runtime = OpenRuntime(flags.run);
  if (!runtime.ok()) return ReportNoOrt(runtime.status());
  VerifyOptions options = flags.options;
  options.run = flags.run.Options();
  options.progress = report::VerifyBar();
  const auto verification = Verify(flags.model, options, **runtime);
  if (!verification.ok()) return Report(verification.status());
  fmt::print("{}", flags.json ? report::ToJson(*verification) + "\n" : Spelled(report::ToText(*verification)));
  return verification->equal ? kEqual : kDiffers;
}

// CLI11 would read -1 as the largest number.
std::string CheckSeed(const std::string& seed) {
  return seed.starts_with('-') ? "needs a number of at least 0, got '" + seed + "'" : std::string();
}

}  // namespace

void AddVerify(CLI::App& app, int& exit_code) {
  CLI::App* verb = app.add_subcommand("verify", "Run a decoder and compare its logits, prefill and each decode step");
  const auto flags = std::make_shared<VerifyFlags>();
  VerifyOptions& options = flags->options;
  verb->add_option("MODEL", flags->model, "ONNX model to judge")->required();
  CLI::Option_group* truth = verb->add_option_group("truth");
  truth->add_option("--golden", options.golden, "Folder with golden.npz: tokens and the logits they should give");
  CLI::Option* against =
      truth->add_option("--against", options.against, "Another model; both get the same random tokens");
  truth->require_option(1);
  verb->add_option(
      "--tol", options.tolerance,
      "Largest difference that counts as equal (default: 1e-4; for a model in f16 or bf16, or whose caches "
      "hold codes, a share of the row's largest logit)");
  verb->add_option("--steps", options.tokens.steps, "With --against: decode steps")
      ->needs(against)
      ->capture_default_str();
  verb->add_option("--prompt", options.tokens.prompt, "With --against: prompt tokens")
      ->needs(against)
      ->capture_default_str();
  verb->add_flag("--hard", options.hard,
                 "With --against: also extreme tokens, a prompt of more than two windows, chunks around the window's "
                 "size, and two sequences of different lengths, as far as the inputs allow them");
  verb->add_option("--seed", options.tokens.seed, "With --against: seed of the random tokens")
      ->needs(against)
      ->check(CheckSeed)
      ->capture_default_str();
  AddRunFlags(*verb, flags->run);
  verb->add_flag("--json", flags->json, "Print JSON");
  verb->callback([flags, &exit_code] { exit_code = RunVerify(*flags); });
}

}  // namespace kvshare::cli
