#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>

#include "cli/run_flags.h"
#include "cli/verbs.h"
#include "kvshare/version.h"

namespace {

int Run(int argc, char** argv) {
  CLI::App app{"kvshare: KV-shared attention for released ONNX Runtime"};
  app.set_version_flag("--version", kvshare::kVersion);
  app.require_subcommand(1);
  app.footer(
      "Exit codes: 0 done; 1 logits differ (verify) or no node ran in kvshare (doctor); 2 bad input or flags;\n"
      "3 refused; 4 no ONNX Runtime; 5 failed");
  int exit_code = kvshare::cli::kEqual;
  kvshare::cli::AddInspect(app, exit_code);
  kvshare::cli::AddRewrite(app, exit_code);
  kvshare::cli::AddVerify(app, exit_code);
  kvshare::cli::AddDoctor(app, exit_code);
  kvshare::cli::AddGenai(app, exit_code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kvshare::cli::kEqual : kvshare::cli::kBadInput;
  } catch (const std::bad_alloc&) {
    return kvshare::cli::Report(kvshare::Status::Internal("out of memory"));
  } catch (const std::exception& error) {
    return kvshare::cli::Report(kvshare::Status::Internal(error.what()));
  }
  return exit_code;
}

}  // namespace

int main(int argc, char** argv) {
  const int exit_code = Run(argc, argv);
  // Whoever reads a report from a full disk would take a part of it for all.
  if (exit_code == kvshare::cli::kFailed || (std::fflush(stdout) == 0 && std::ferror(stdout) == 0)) return exit_code;
  return kvshare::cli::Report(
      kvshare::Status::Internal(fmt::format("cannot print the report: {}", std::strerror(errno))));
}
