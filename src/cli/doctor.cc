#include "kvshare/doctor.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "cli/run_flags.h"
#include "cli/verbs.h"
#include "report/report.h"

namespace kvshare::cli {
namespace {

struct DoctorFlags {
  std::string model;
  RunFlags run;
  bool json = false;
};

ExitCode RunDoctor(const DoctorFlags& flags) {
  const auto runtime = OpenRuntime(flags.run);
  if (!runtime.ok()) return ReportNoOrt(runtime.status());
  const auto diagnosis = Diagnose(flags.model, flags.run.Options(), **runtime);
  if (!diagnosis.ok()) return Report(diagnosis.status());
  fmt::print("{}", flags.json ? report::ToJson(*diagnosis) + "\n" : Spelled(report::ToText(*diagnosis)));
  return diagnosis->NodesHere() > 0 ? kEqual : kDiffers;
}

}  // namespace

void AddDoctor(CLI::App& app, int& exit_code) {
  CLI::App* verb =
      app.add_subcommand("doctor", "Run a model on random inputs and tell which nodes kvshare really serves");
  const auto flags = std::make_shared<DoctorFlags>();
  verb->add_option("MODEL", flags->model, "ONNX model to examine")->required();
  AddRunFlags(*verb, flags->run);
  verb->add_flag("--json", flags->json, "Print JSON");
  verb->callback([flags, &exit_code] { exit_code = RunDoctor(*flags); });
}

}  // namespace kvshare::cli
