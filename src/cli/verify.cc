#include "host/verify.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "cli/caches.h"
#include "cli/run_flags.h"
#include "cli/verbs.h"
#include "kvshare/rewrite.h"

namespace kvshare::cli {
namespace {

struct VerifyFlags {
  std::string model;
  std::string golden;
  std::string against;
  double tolerance = 1e-4;
  host::RandomTokens tokens;
  RunFlags run;
};

using Ort = std::shared_ptr<const host::OrtHost>;

Result<host::Decoder> Load(const Ort& ort, const std::string& model, const host::SessionSetup& setup) {
  KVSHARE_ASSIGN_OR_RETURN(host::Session session, host::Session::Create(ort, model, setup));
  const auto inspection = Inspect(model);  // a model that it does not take may still run
  return host::Decoder::Create(std::move(session), inspection.ok() ? CachesOf(*inspection) : host::Caches{});
}

Result<host::Verification> Verify(const Ort& ort, const VerifyFlags& flags) {
  const RunFlags& run = flags.run;
  KVSHARE_ASSIGN_OR_RETURN(const auto setup,
                           host::SetupFor(flags.model, run.WhenLibrary(), run.LibraryPath(), run.Entries()));
  if (!flags.golden.empty()) {
    KVSHARE_ASSIGN_OR_RETURN(const auto golden, host::ReadNpz(flags.golden + "/golden.npz"));
    KVSHARE_ASSIGN_OR_RETURN(host::Decoder decoder, Load(ort, flags.model, setup));
    return host::VerifyGolden(decoder, golden);
  }
  // The other model stands for the truth: it gets the library only where it cannot do without, and no entries.
  KVSHARE_ASSIGN_OR_RETURN(const auto plain,
                           host::SetupFor(flags.against, host::Library::kOnDemand, run.LibraryPath(), {}));
  KVSHARE_ASSIGN_OR_RETURN(host::Decoder decoder, Load(ort, flags.model, setup));
  KVSHARE_ASSIGN_OR_RETURN(host::Decoder other, Load(ort, flags.against, plain));
  fmt::print("seed {}\n", flags.tokens.seed);
  return host::VerifyAgainst(decoder, other, flags.tokens);
}

ExitCode RunVerify(const VerifyFlags& flags) {
  const auto ort = OpenOrt(flags.run);
  if (!ort.ok()) {
    Report(ort.status());
    return kNoOrt;
  }
  const auto verification = Verify(*ort, flags);
  if (!verification.ok()) return Report(verification.status());
  for (const auto& [step, difference] : verification->steps) fmt::print("{:<10} max diff {:.1e}\n", step, difference);
  const bool equal = verification->Within(flags.tolerance);
  fmt::print("{} within {:g} (ONNX Runtime {})\n", equal ? "equal" : "NOT equal", flags.tolerance, (*ort)->version());
  return equal ? kEqual : kDiffers;
}

}  // namespace

void AddVerify(CLI::App& app, int& exit_code) {
  CLI::App* verb = app.add_subcommand("verify", "Run a decoder and compare its logits, prefill and each decode step");
  const auto flags = std::make_shared<VerifyFlags>();
  verb->add_option("MODEL", flags->model, "ONNX model to judge")->required();
  CLI::Option_group* truth = verb->add_option_group("truth");
  truth->add_option("--golden", flags->golden, "folder with golden.npz: tokens and the logits they should give");
  truth->add_option("--against", flags->against, "another model; both get the same random tokens");
  truth->require_option(1);
  verb->add_option("--tol", flags->tolerance, "largest difference that counts as equal")->capture_default_str();
  verb->add_option("--steps", flags->tokens.steps, "--against: decode steps")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  verb->add_option("--prompt", flags->tokens.prompt, "--against: prompt tokens")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  verb->add_option("--seed", flags->tokens.seed, "--against: seed of the random tokens")->capture_default_str();
  AddRunFlags(*verb, flags->run);
  verb->callback([flags, &exit_code] { exit_code = RunVerify(*flags); });
}

}  // namespace kvshare::cli
