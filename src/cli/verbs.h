// The verbs of the command line, one file each. A verb prints what the library returned and decides nothing itself.
#pragma once

namespace CLI {
class App;
}

namespace kvshare::cli {

// Exit codes, the same for every verb.
enum ExitCode { kEqual = 0, kDiffers = 1, kBadInput = 2, kRefused = 3, kNoOrt = 4, kFailed = 5 };

// Each adds its subcommand to `app`; where the user chose it, its callback sets `exit_code`.
void AddInspect(CLI::App& app, int& exit_code);
void AddRewrite(CLI::App& app, int& exit_code);
void AddVerify(CLI::App& app, int& exit_code);
void AddDoctor(CLI::App& app, int& exit_code);
void AddGenai(CLI::App& app, int& exit_code);

}  // namespace kvshare::cli
