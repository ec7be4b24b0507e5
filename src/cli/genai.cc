#include "kvshare/genai.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <map>
#include <memory>
#include <string>

#include "cli/run_flags.h"
#include "cli/verbs.h"
#include "kvshare/provider.h"
#include "report/progress.h"
#include "report/report.h"

namespace kvshare::cli {
namespace {

struct Arguments {
  std::string folder;
  std::string out;
  std::vector<std::string> options;
  bool undo = false;
  bool json = false;
  std::string library;
};

ExitCode Run(const Arguments& arguments) {
  std::map<std::string, std::string> options;
  for (const std::string& option : arguments.options)
    if (const auto [known, is_new] = options.insert(SplitPair(option)); !is_new)
      return Report(Status::InvalidInput(fmt::format(
          "option 'option' = '{}' is given beside '{}={}'; needs one of them", option, known->first, known->second)));
  const auto done = arguments.undo ? UndoGenaiProvider(arguments.folder)
                                   : AddGenaiProvider(arguments.folder, arguments.out, options, report::CopyBar());
  if (!done.ok()) return Report(done.status());
  const std::string library = arguments.undo ? "" : arguments.library;
  fmt::print("{}", arguments.json ? report::ToJson(*done, library) + "\n" : report::ToText(*done, library));
  return kEqual;
}

// What is wrong with `option`, a KEY=VALUE, or nothing.
std::string CheckOption(const std::string& option) {
  const auto [name, value] = SplitPair(option);
  ProviderOptions parsed;
  return SetProviderOption(name, value, parsed).message();
}

}  // namespace

void AddGenai(CLI::App& app, int& exit_code) {
  CLI::App* verb =
      app.add_subcommand("genai", "Let an onnxruntime-genai model folder run on kvshare's execution provider");
  const auto arguments = std::make_shared<Arguments>();
  verb->add_option("MODEL_DIR", arguments->folder, "Folder with genai_config.json")->required();
  CLI::Option* out = verb->add_option("-o,--output", arguments->out, "Copy the folder here and edit the copy");
  CLI::Option* option = verb->add_option("--option", arguments->options,
                                         "Option of the provider: mode=fuse, nodes or off; causal_alignment=auto, spec "
                                         "or lower_right. May be repeated")
                            ->type_name("KEY=VALUE")
                            ->allow_extra_args(false)
                            ->check(CheckPair)
                            ->check(CheckOption);
  verb->add_flag("--undo", arguments->undo, "Put the configuration back as it was")->excludes(out)->excludes(option);
  verb->add_flag("--json", arguments->json, "Print JSON");
  arguments->library = RunFlags().Options().library;
  verb->callback([arguments, &exit_code] { exit_code = Run(*arguments); });
}

}  // namespace kvshare::cli
