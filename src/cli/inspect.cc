#include <CLI/CLI.hpp>

#include "cli/verbs.h"

namespace kvshare::cli {

void AddInspect(CLI::App& app, int& exit_code) {
  CLI::App* verb = app.add_subcommand("inspect", "");
  verb->callback([&exit_code] { exit_code = kRefused; });
}

}  // namespace kvshare::cli
