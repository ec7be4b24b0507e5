#include <CLI/CLI.hpp>

#include "cli/verbs.h"

int main(int argc, char** argv) {
  CLI::App app{"kvshare: KV-shared attention for released ONNX Runtime"};
  app.require_subcommand(1);
  int exit_code = kvshare::cli::kEqual;
  kvshare::cli::AddInspect(app, exit_code);
  kvshare::cli::AddRewrite(app, exit_code);
  kvshare::cli::AddVerify(app, exit_code);
  kvshare::cli::AddDoctor(app, exit_code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kvshare::cli::kEqual : kvshare::cli::kBadInput;
  }
  return exit_code;
}
