#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "cli/run_flags.h"
#include "cli/verbs.h"
#include "kvshare/calibrate.h"
#include "kvshare/rewrite.h"
#include "report/progress.h"
#include "report/report.h"

namespace kvshare::cli {
namespace {

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

// What the flags say of caches; for scales the model runs.
Result<KvCache> KvCacheOf(const Arguments& arguments) {
  KvCache cache{.type = *arguments.cache, .scale_per_tensor = arguments.scale_per_tensor};
  if (arguments.calibrate.empty()) return cache;
  KVSHARE_ASSIGN_OR_RETURN(const auto runtime, OpenRuntime(arguments.run));
  KVSHARE_ASSIGN_OR_RETURN(cache.largest,
                           Calibrate(arguments.model, arguments.calibrate, arguments.run.Options(), *runtime));
  return cache;
}

ExitCode Run(Arguments& arguments) {
  if (arguments.cache) {
    auto cache = KvCacheOf(arguments);
    if (!cache.ok()) return Report(cache.status());
    arguments.options.kv_cache = *std::move(cache);
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
  static const std::map<std::string, Target> targets(kTargets.begin(), kTargets.end());
  verb->add_option("--to", options.target,
                   "kvshare, kvshare-attention, ort (no custom library) or onnx25 (operators of ai.onnx alone)")
      ->required()
      ->transform(CLI::CheckedTransformer(targets));
  static const std::map<std::string, bool> own = {{"convert", false}, {"keep", true}};
  verb->add_option("--own", options.keep_own, "Own layers: convert (default) or keep, as --to kvshare-attention does")
      ->transform(CLI::CheckedTransformer(own));
  static const std::map<std::string, Rope> ropes(kRopes.begin(), kRopes.end());
  verb->add_option("--rope", options.rope, "Rotary embedding of queries: fold or keep (default: what --to can serve)")
      ->transform(CLI::CheckedTransformer(ropes));
  verb->add_option("--min-ort", options.min_ort, "Oldest ONNX Runtime to serve, with --to ort (default 1.31)");
  verb->add_option("--skip", options.skip, "A rule not to run; may be repeated");
  CLI::Option* dry_run = verb->add_flag("--dry-run", options.dry_run, "Report, write nothing");
  CLI::Option* windows = verb->add_flag(
      "--window-caches{64}", arguments->slack,
      "Caches of layers with a window hold its keys and so many more (--window-caches=SLACK, default 64)");
  static const std::map<std::string, CacheType> caches(kCacheTypes.begin(), kCacheTypes.end());
  CLI::Option* cache =
      verb->add_option("--kv-cache", arguments->cache, "What caches hold: int8, int4, fp8, bf16 or fp16")
          ->transform(CLI::CheckedTransformer(caches));
  verb->add_option("--calibrate", arguments->calibrate,
                   "--kv-cache: an .npz file with a prompt (input_ids); the model runs on it, and the largest key and "
                   "value of each channel make its scales")
      ->needs(cache);
  verb->add_flag("--scale-per-tensor", arguments->scale_per_tensor,
                 "--kv-cache: one scale for each cache, not one for each channel")
      ->needs(cache);
  verb->add_flag("--fast-prefill", options.fast_prefill,
                 "Layers behind the last own keys compute each sequence's last token alone: logits are [B, 1, V]");
  verb->add_flag("--prune-inputs", options.prune_inputs, "Drop graph inputs that nothing reads");
  verb->add_flag("--json", arguments->json, "Print JSON");
  verb->add_option(
      "--weights", options.weights_name,
      "What the written model's weights are called; a folder where there are several files (default: as they "
      "are)");
  AddRunFlags(*verb, arguments->run);
  verb->add_flag("--link-weights", options.link_weights,
                 "In another folder: hard-link the weights instead of copying them. Who edits one file edits both");
  verb->callback([arguments, out, dry_run, windows, &exit_code] {
    if (windows->count() > 0) arguments->options.window_caches = RowsOf(arguments->slack);
    if (out->count() == 0 && dry_run->count() == 0) throw CLI::RequiredError("--output");
    arguments->options.progress = report::CopyBar();
    exit_code = Run(*arguments);
  });
}

}  // namespace kvshare::cli
