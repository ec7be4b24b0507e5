#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "cli/run_flags.h"
#include "cli/verbs.h"
#include "kvshare/rewrite.h"
#include "report/report.h"

namespace kvshare::cli {
namespace {

struct Arguments {
  std::string model;
  InspectOptions options;
  bool json = false;
};

ExitCode Run(const Arguments& arguments) {
  const auto inspection = Inspect(arguments.model, arguments.options);
  if (!inspection.ok()) return Report(inspection.status());
  fmt::print("{}", arguments.json ? report::ToJson(*inspection) + "\n" : report::ToText(*inspection));
  return kEqual;
}

}  // namespace

void AddInspect(CLI::App& app, int& exit_code) {
  CLI::App* verb =
      app.add_subcommand("inspect", "Show a model's attention: who owns K/V, who borrows, masks, copies, traps");
  const auto arguments = std::make_shared<Arguments>();
  verb->add_option("MODEL", arguments->model, "ONNX model")->required();
  verb->add_option("--cuda", arguments->options.cuda,
                   "Also predict where that release's CUDA provider runs the nodes, and what it copies, e.g. 1.29")
      ->type_name("RELEASE");
  verb->add_flag("--json", arguments->json, "Print JSON");
  verb->callback([arguments, &exit_code] { exit_code = Run(*arguments); });
}

}  // namespace kvshare::cli
