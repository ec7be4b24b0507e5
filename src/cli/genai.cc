#include "kvshare/genai.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <map>
#include <memory>
#include <string>

#include "cli/run_flags.h"
#include "cli/verbs.h"
#include "report/progress.h"
#include "report/report.h"

namespace kvshare::cli {
namespace {

struct Arguments {
  std::string folder;
  std::string out;
  Pairs options;
  bool undo = false;
  bool json = false;
  std::string library;
};

ExitCode Run(const Arguments& arguments) {
  const std::map<std::string, std::string> options(arguments.options.begin(), arguments.options.end());
  const auto done = arguments.undo ? UndoGenaiProvider(arguments.folder)
                                   : AddGenaiProvider(arguments.folder, arguments.out, options, report::CopyBar());
  if (!done.ok()) return Report(done.status());
  const std::string library = arguments.undo ? "" : arguments.library;
  fmt::print("{}", arguments.json ? report::ToJson(*done, library) + "\n" : report::ToText(*done, library));
  return kEqual;
}

}  // namespace

void AddGenai(CLI::App& app, int& exit_code) {
  CLI::App* verb =
      app.add_subcommand("genai", "Let an onnxruntime-genai model folder run on kvshare's execution provider");
  const auto arguments = std::make_shared<Arguments>();
  verb->add_option("MODEL_DIR", arguments->folder, "Folder with genai_config.json")->required();
  CLI::Option* out = verb->add_option("-o,--output", arguments->out, "Copy the folder here and edit the copy");
  CLI::Option* option = AddPairs(*verb, "--option", arguments->options, "KEY=VALUE",
                                 "Option of the provider: mode=fuse, nodes or off; causal_alignment=auto, spec or "
                                 "lower_right. May be repeated");
  verb->add_flag("--undo", arguments->undo, "Put the configuration back as it was")->excludes(out)->excludes(option);
  verb->add_flag("--json", arguments->json, "Print JSON");
  arguments->library = RunFlags().Options().library;
  verb->callback([arguments, &exit_code] { exit_code = Run(*arguments); });
}

}  // namespace kvshare::cli
