#include <CLI/CLI.hpp>

#include "cli/verbs.h"

namespace kvshare::cli {

void AddVerify(CLI::App& app, int& exit_code) {
  CLI::App* verb = app.add_subcommand("verify", "");
  verb->callback([&exit_code] { exit_code = kRefused; });
}

}  // namespace kvshare::cli
