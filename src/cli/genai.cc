#include "kvshare/genai.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <map>
#include <memory>
#include <string>

#include "cli/run_flags.h"
#include "cli/verbs.h"

namespace kvshare::cli {
namespace {

struct Arguments {
  std::string folder;
  std::string out;
  std::vector<std::string> options;
  bool undo = false;
  std::string library;
};

// A program has to register the library: onnxruntime-genai knows only the providers that were registered before.
constexpr const char* kRegistration =
    "The program registers the library before it loads the model, or onnxruntime-genai says \"Unknown provider name\":\n"
    "  onnxruntime_genai.register_execution_provider_library(\"kvshare\", \"{}\")\n";

ExitCode Run(const Arguments& arguments) {
  std::map<std::string, std::string> options;
  for (const std::string& option : arguments.options) options.insert(SplitPair(option));
  const auto report = arguments.undo ? UndoGenaiProvider(arguments.folder)
                                     : AddGenaiProvider(arguments.folder, arguments.out, options);
  if (!report.ok()) return Report(report.status());
  for (const std::string& change : report->changes) fmt::print("{}\n", change);
  if (report->changes.empty()) fmt::print("nothing to change\n");
  fmt::print("written: {}\n", report->config);
  if (!report->backup.empty()) fmt::print("backup:  {} (kvshare genai {} --undo)\n", report->backup, arguments.folder);
  if (!arguments.undo) fmt::print(fmt::runtime(kRegistration), arguments.library);
  return kEqual;
}

}  // namespace

void AddGenai(CLI::App& app, int& exit_code) {
  CLI::App* verb = app.add_subcommand("genai", "Let an onnxruntime-genai model folder run on kvshare's execution provider");
  const auto arguments = std::make_shared<Arguments>();
  verb->add_option("MODEL_DIR", arguments->folder, "Folder with genai_config.json")->required();
  CLI::Option* out = verb->add_option("-o,--output", arguments->out, "Copy the folder here and edit the copy");
  CLI::Option* option =
      verb->add_option("--option", arguments->options, "Option of the provider, e.g. mode=nodes; may be repeated")
          ->type_name("KEY=VALUE")
          ->allow_extra_args(false)
          ->check(CheckPair);
  verb->add_flag("--undo", arguments->undo, "Put the configuration back as it was")->excludes(out)->excludes(option);
  arguments->library = RunFlags().Options().library;
  verb->callback([arguments, &exit_code] { exit_code = Run(*arguments); });
}

}  // namespace kvshare::cli
