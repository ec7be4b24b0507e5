#include <CLI/CLI.hpp>

#include "cli/verbs.h"

namespace kvshare::cli {

void AddDoctor(CLI::App& app, int& exit_code) {
  CLI::App* verb = app.add_subcommand("doctor", "");
  verb->callback([&exit_code] { exit_code = kRefused; });
}

}  // namespace kvshare::cli
