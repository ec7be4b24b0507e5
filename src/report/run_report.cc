#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>

#include "report/json.h"
#include "report/report.h"

namespace kvshare::report {
namespace {

// {0}: the value of kvshare.drop_in. {1}: the library.
constexpr const char* kOrderRule =
    "Order: a session entry counts only if it is set before the library is registered; set later it is ignored\n"
    "silently. doctor sets its entries first:\n"
    "  options.add_session_config_entry(\"kvshare.drop_in\", \"{0}\")  # 1. entries\n"
    "  options.register_custom_ops_library(\"{1}\")  # 2. the library\n"
    "  onnxruntime.InferenceSession(model, options)  # 3. the session\n";

std::string_view NameOf(Via via) {
  for (const auto& [name, known] : kVias)
    if (known == via) return name;
  return "ops";  // a diagnosis as needed registers the operators
}

// JSON has no NaN and no infinity.
Json Number(double value) { return std::isfinite(value) ? Json(value) : Json(); }

std::string Invented(const std::vector<std::string>& invented) {
  return invented.empty() ? "" : OneLine(fmt::format("made up: {}", fmt::join(invented, ", "))) + "\n";
}

std::string WhatToDo(const Diagnosis& diagnosis) {
  if (diagnosis.drop_in.empty()) return fmt::format("No node ran in kvshare: {}.\n", kNothingToServe);
  if (diagnosis.via == Via::kEp)
    return "No node ran in kvshare. ONNX Runtime's log at level INFO (log_severity_level = 1) has the provider's "
           "reason for each\nattention node.\n";
  return fmt::format(
      "No node ran in kvshare. Either rewrite the model (kvshare rewrite MODEL -o OUT --to kvshare), or let the\n"
      "library replace ONNX Runtime's ops in the model as it is (session entry kvshare.drop_in={0}; here: option "
      "'entry' = 'kvshare.drop_in={0}').\n",
      diagnosis.drop_in);
}

std::string Entries(const SessionEntries& entries) {
  std::vector<std::string> texts;
  for (const auto& [key, value] : entries) texts.push_back(fmt::format("{}={}", key, value));
  return texts.empty() ? "none" : fmt::format("{}", fmt::join(texts, " "));
}

Json EntriesJson(const SessionEntries& entries) {
  Json json = Json::object();
  for (const auto& [key, value] : entries) json[key] = value;
  return json;
}

// The measures of a model with caches of codes, and their limits.
std::string CodesText(const CodesCheck& codes) {
  std::string text =
      fmt::format("codes      max diff {:.1e} of the row's largest logit from the same codes in f32; needs {:g}\n",
                  codes.difference, codes.tolerance);
  for (const CacheRounding& cache : codes.caches) {
    text +=
        fmt::format("           {}: rounding takes {:.1f} % of a channel", OneLine(cache.present), 100 * cache.share);
    if (cache.alike)
      text += ", by the other model's scales";
    else if (cache.share > codes.rounding)
      text += fmt::format("; needs {:g} %: another scale", 100 * codes.rounding);
    text += cache.far == 0 ? "\n" : fmt::format("; {} codes are not next to their value\n", cache.far);
  }
  return text + fmt::format("unrounded  max diff {:.1e}, {:.1e} of the row's largest logit\n",
                            codes.unrounded.difference, codes.unrounded.relative);
}

// The verdict, and the limit that it was judged by.
std::string Judgement(const Verification& v) {
  std::string text = v.equal ? "equal" : "NOT equal";
  if (v.codes && !v.codes->right) return text + ": codes are wrong";
  if (v.codes) {
    text += fmt::format(": codes are right, and the model without them is {}within {:g}", v.equal ? "" : "not ",
                        v.tolerance);
    return v.relative ? text + " of the row's largest logit" : text;
  }
  text += fmt::format(" within {:g}", v.tolerance);
  if (!v.relative) return text;
  return text + fmt::format(" of the row's largest logit, the default for a model {} {}",
                            IsQuantized(v.precision) ? "with caches in" : "in", NameOf(v.precision));
}

Json CodesJson(const CodesCheck& codes) {
  Json caches = Json::array();
  for (const CacheRounding& cache : codes.caches)
    caches.push_back(
        {{"present", cache.present}, {"share", Number(cache.share)}, {"far", cache.far}, {"alike", cache.alike}});
  return {{"difference", Number(codes.difference)},
          {"tolerance", codes.tolerance},
          {"rounding", codes.rounding},
          {"unrounded",
           {{"difference", Number(codes.unrounded.difference)}, {"relative", Number(codes.unrounded.relative)}}},
          {"caches", std::move(caches)},
          {"right", codes.right}};
}

}  // namespace

std::string ToText(const Verification& v) {
  std::string text = v.seed ? fmt::format("seed {}\n", *v.seed) : "";
  text += Invented(v.invented);
  for (const StepDifference& step : v.steps) {
    text += fmt::format("{:<10} max diff {:.1e}", step.step, step.difference);
    text += v.relative || v.codes ? fmt::format(", {:.1e} of the row's largest logit\n", step.relative) : "\n";
  }
  if (v.codes) text += CodesText(*v.codes);
  for (const std::string& note : v.notes) text += fmt::format("note: {}\n", OneLine(note));
  return text + fmt::format("{} (ONNX Runtime {})\n", Judgement(v), v.runtime);
}

std::string ToJson(const Verification& v) {
  Json steps = Json::array();
  for (const StepDifference& step : v.steps)
    steps.push_back(
        {{"step", step.step}, {"difference", Number(step.difference)}, {"relative", Number(step.relative)}});
  const Json all = {{"equal", v.equal},
                    {"seed", v.seed ? Json(*v.seed) : Json()},
                    {"tolerance", v.tolerance},
                    {"relative", v.relative},
                    {"precision", NameOf(v.precision)},
                    {"steps", std::move(steps)},
                    {"invented", v.invented},
                    {"codes", v.codes ? CodesJson(*v.codes) : Json()},
                    {"notes", v.notes},
                    {"onnxruntime", v.runtime}};
  return Dump(all);
}

std::string ToText(const Diagnosis& d) {
  std::string text = fmt::format("{:<14}{}  ({})\n", "ONNX Runtime", d.runtime, d.runtime_where);
  text += fmt::format("{:<14}kvshare {}, SIMD target {}, via {}  ({})\n", "library", d.stats.version, d.stats.simd,
                      NameOf(d.via), d.library);
  text += fmt::format("{:<14}{}\n{:<14}{}\n", "entries", Entries(d.entries), "ran", d.workload) + Invented(d.invented);
  if (!d.stats.nodes.empty()) text += fmt::format("\n{:<38}{:>6}{:>8}  kernels\n", "op", "nodes", "calls");
  for (const OpSummary& op : SummarizeOps(d.stats))
    text += fmt::format("{:<38}{:>6}{:>8}  {}\n", op.op, op.nodes, op.ran, op.kernels);
  const int64_t here = d.NodesHere();
  text += fmt::format("\n{} {} ran in kvshare.\n", here, here == 1 ? "node" : "nodes");
  if (here == 0) text += WhatToDo(d);
  // The graph tool's warnings. Only it sees misspelt attributes: a custom op's schema accepts any attribute, so neither
  // ONNX Runtime nor the library can tell.
  if (!d.warnings.empty()) text += "\nwarnings\n";
  for (const std::string& warning : d.warnings) text += fmt::format("  {}\n", OneLine(warning));
  if (d.via == Via::kEp) return text;
  return text + "\n" + fmt::format(fmt::runtime(kOrderRule), d.drop_in.empty() ? "1" : d.drop_in, d.library);
}

std::string ToJson(const Diagnosis& d) {
  Json nodes = Json::array();
  for (const NodeCount& n : d.stats.nodes)
    nodes.push_back({{"domain", n.domain}, {"op", n.op}, {"node", n.node}, {"kernel", n.kernel}, {"ran", n.ran}});
  const Json all = {{"nodes_here", d.NodesHere()},
                    {"nodes", std::move(nodes)},
                    {"workload", d.workload},
                    {"invented", d.invented},
                    {"version", d.stats.version},
                    {"simd", d.stats.simd},
                    {"library", d.library},
                    {"via", NameOf(d.via)},
                    {"entries", EntriesJson(d.entries)},
                    {"onnxruntime", d.runtime},
                    {"onnxruntime_file", d.runtime_where},
                    {"drop_in", d.drop_in},
                    {"warnings", d.warnings}};
  return Dump(all);
}

}  // namespace kvshare::report
