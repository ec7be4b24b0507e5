#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <array>
#include <charconv>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "cli/choice.h"
#include "cli/run_flags.h"
#include "cli/verbs.h"
#include "kvshare/calibrate.h"
#include "kvshare/rewrite.h"
#include "report/progress.h"
#include "report/report.h"

namespace kvshare::cli {
namespace {

constexpr std::array<std::pair<std::string_view, bool>, 2> kOwn = {{{"convert", false}, {"keep", true}}};

struct Arguments {
  std::string model;
  std::string out;
  RewriteOptions options;
  bool json = false;
  std::string slack;  // text: CLI11 takes a flag's 0 for "no"
  std::optional<CacheType> cache;
  std::string calibrate;  // "": no calibration
  bool scale_per_tensor = false;
  RunFlags run;
};

int64_t RowsOf(const std::string& text) {
  int64_t rows = 0;
  const char* end = text.data() + text.size();
  if (const auto read = std::from_chars(text.data(), end, rows); read.ec != std::errc() || read.ptr != end)
    throw CLI::ValidationError("--window-caches", fmt::format("'{}' is no number of rows", text));
  return rows;
}

// Runs the model for the scales of `cache`.
ExitCode CalibrateCache(const Arguments& arguments, KvCache& cache) {
  const auto runtime = OpenRuntime(arguments.run);
  if (!runtime.ok()) return ReportNoOrt(runtime.status());
  auto largest = Calibrate(arguments.model, arguments.calibrate, arguments.run.Options(), **runtime);
  if (!largest.ok()) return Report(largest.status());
  cache.largest = *std::move(largest);
  return kEqual;
}

ExitCode Run(Arguments& arguments) {
  if (arguments.cache) {
    KvCache cache{.type = *arguments.cache, .scale_per_tensor = arguments.scale_per_tensor};
    if (!arguments.calibrate.empty())
      if (const ExitCode code = CalibrateCache(arguments, cache); code != kEqual) return code;
    arguments.options.kv_cache = std::move(cache);
  }
  const auto rewritten = Rewrite(arguments.model, arguments.out, arguments.options);
  if (!rewritten.ok()) return Report(rewritten.status());
  if (arguments.json) {
    fmt::print("{}\n", Spelled(report::ToJson(*rewritten)));
    return kEqual;
  }
  fmt::print("{}{}\n", Spelled(report::ToText(*rewritten)),
             arguments.options.dry_run ? "dry run: nothing written" : fmt::format("written: {}", arguments.out));
  return kEqual;
}

}  // namespace

void AddRewrite(CLI::App& app, int& exit_code) {
  CLI::App* verb = app.add_subcommand("rewrite", "Turn a model's shared attention layers into a form that runs well");
  const auto arguments = std::make_shared<Arguments>();
  RewriteOptions& options = arguments->options;
  verb->add_option("MODEL", arguments->model, "ONNX model")->required();
  CLI::Option* out = verb->add_option("-o,--output", arguments->out, "Where to write; needed unless --dry-run");
  AddChoice(*verb, "--to", options.target, kTargets,
            "What attention becomes: operators of kvshare (kvshare; kvshare-attention keeps masks), what ONNX Runtime "
            "has without a custom library (ort), or operators of ai.onnx alone (onnx25)")
      ->required();
  AddChoice(*verb, "--own", options.keep_own, kOwn, "Own layers: convert them (default), or keep them as they are");
  AddChoice(*verb, "--rope", options.rope, kRopes,
            "Rotary embedding of queries: fold it into the attention node, or keep its node (default: what --to can "
            "serve)");
  verb->add_option("--min-ort", options.min_ort, "With --to ort: oldest ONNX Runtime to serve (default 1.31)");
  verb->add_option("--skip", options.skip, "A rule not to run, by the name in the report; may be repeated")
      ->type_name("RULE")
      ->allow_extra_args(false);  // one a flag, or it would swallow MODEL
  CLI::Option* dry_run = verb->add_flag("--dry-run", options.dry_run, "Report, write nothing");
  CLI::Option* windows = verb->add_flag(
      "--window-caches{64}", arguments->slack,
      "Caches of layers with a window hold the window's keys and SLACK more (--window-caches=SLACK, default 64)");
  CLI::Option* cache =
      AddChoice(*verb, "--kv-cache", arguments->cache, kCacheTypes, "What caches hold (default: what they hold now)");
  CLI::Option* calibrate =
      verb->add_option(
              "--calibrate", arguments->calibrate,
              "With --kv-cache: an .npz file with a prompt (input_ids). The model runs on it; the largest key and "
              "value of each channel make its scale")
          ->needs(cache);
  verb->add_flag("--scale-per-tensor", arguments->scale_per_tensor,
                 "With --kv-cache: one scale for each cache, not one for each channel")
      ->needs(cache);
  verb->add_flag("--fast-prefill", options.fast_prefill,
                 "Layers behind the last own layer compute each sequence's last token alone: logits are [B, 1, V]");
  verb->add_flag("--prune-inputs", options.prune_inputs, "Drop graph inputs that nothing reads");
  verb->add_flag("--json", arguments->json, "Print JSON");
  verb->add_option(
      "--weights", options.weights_name,
      "Name of the written model's weights: of their file, or of a folder where there are several files (default: "
      "their names stay)");
  for (CLI::Option* flag : AddRunFlags(*verb, arguments->run)) flag->needs(calibrate);
  verb->add_flag("--link-weights", options.link_weights,
                 "In another folder: hard-link the weights, and do not copy them. An edit of one file is then an edit "
                 "of both");
  verb->callback([arguments, out, dry_run, windows, &exit_code] {
    if (windows->count() > 0) arguments->options.window_caches = RowsOf(arguments->slack);
    if (out->count() == 0 && dry_run->count() == 0) throw CLI::RequiredError("--output");
    arguments->options.progress = report::CopyBar();
    exit_code = Run(*arguments);
  });
}

}  // namespace kvshare::cli
