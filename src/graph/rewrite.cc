// The way of a rewrite: load once, rules in memory with a check after each, write once.
#include "kvshare/rewrite.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <optional>

#include "graph/inspection.h"
#include "graph/model_file.h"
#include "graph/placement/placement.h"
#include "graph/provenance.h"
#include "graph/rewrite_graph.h"
#include "graph/rules/kv_cache.h"
#include "graph/rules/rule.h"
#include "graph/validate.h"

namespace kvshare {
namespace {

using namespace graph;  // this file is graph's public face

struct OrtVersion {
  int major = 0;
  int minor = 0;
  auto operator<=>(const OrtVersion&) const = default;
};

// "1.31" or "1.31.1".
std::optional<OrtVersion> ParseVersion(const std::string& text) {
  OrtVersion version;
  const char* end = text.data() + text.size();
  const auto major = std::from_chars(text.data(), end, version.major);
  if (major.ec != std::errc() || major.ptr == end || *major.ptr != '.') return std::nullopt;
  const auto minor = std::from_chars(major.ptr + 1, end, version.minor);
  if (minor.ec != std::errc() || (minor.ptr != end && *minor.ptr != '.')) return std::nullopt;
  return version;
}

Status CheckWindowCaches(Target target, int64_t slack) {
  if (slack < 0 || slack > std::numeric_limits<int32_t>::max())
    return Status::InvalidInput(fmt::format("option 'window_caches' = '{}': needs 0 to {} rows beside the window",
                                            slack, std::numeric_limits<int32_t>::max()));
  if (target != Target::kKvshare)
    return Status::Refused(
        "option 'window_caches': ONNX Runtime has no window-sized cache that other layers borrow; needs option "
        "'target' = 'kvshare'");
  return {};
}

Status CheckKvCache(Target target, const KvCache& cache) {
  if (target != Target::kKvshare)
    return Status::Refused(fmt::format(
        "option 'kv_cache' = '{}': ONNX Runtime's layers do not borrow such a cache; needs option 'target' = 'kvshare'",
        NameOf(cache.type)));
  const bool is_integer = cache.type == CacheType::kInt8 || cache.type == CacheType::kInt4;
  if (is_integer && cache.largest.empty())
    return Status::Refused(
        fmt::format("option 'kv_cache' = '{}': no scale suits the keys and values of every model; needs option "
                    "'calibrate'",
                    NameOf(cache.type)));
  return {};
}

Status CheckOptions(const RewriteOptions& options) {
  for (const std::string& skipped : options.skip) {
    std::vector<std::string> names;
    for (const Rule& rule : AllRules()) names.emplace_back(rule.name);
    if (std::find(names.begin(), names.end(), skipped) == names.end())
      return Status::InvalidInput(fmt::format("no rule '{}'; have {}", skipped, fmt::join(names, ", ")));
  }
  if (DefaultRope(options.target) == Rope::kKeep && options.rope == Rope::kFold)
    return Status::Refused(
        fmt::format("option 'rope' = 'fold': {} takes a rotated query; needs option 'rope' = 'keep'",
                    options.target == Target::kOnnx25 ? "ai.onnx's Attention" : "kvshare::Attention"));
  if (options.window_caches) KVSHARE_RETURN_IF_ERROR(CheckWindowCaches(options.target, *options.window_caches));
  if (options.kv_cache) KVSHARE_RETURN_IF_ERROR(CheckKvCache(options.target, *options.kv_cache));
  const auto version = ParseVersion(options.min_ort);
  if (!version)
    return Status::InvalidInput(fmt::format("option 'min_ort' = '{}': needs a version, e.g. 1.31", options.min_ort));
  if (options.target == Target::kOrt && *version < OrtVersion{1, 27})
    return Status::Refused(fmt::format(
        "option 'target' = 'ort' option 'min_ort' = '{}': releases before 1.27 refuse key and value of length 0, "
        "which is how upstream shares; needs at least 1.27, or option 'target' = 'kvshare'",
        options.min_ort));
  return {};
}

RuleSaving SavingOf(const std::string& rule, const Inspection& before, const Inspection& after) {
  // Caches that no layer of the inspection has are seen here alone.
  const bool is_of_equal = rule == kEqualCachesRule;
  const int64_t cache_bytes =
      is_of_equal ? before.EqualCacheBytes() - after.EqualCacheBytes() : before.CacheBytes() - after.CacheBytes();
  return {rule,
          before.nodes - after.nodes,
          before.mask_nodes - after.mask_nodes,
          before.borrowed_copies + before.repeat_nodes - after.borrowed_copies - after.repeat_nodes,
          before.named_unused_presents - after.named_unused_presents,
          cache_bytes};
}

bool HasChanged(const std::vector<RuleOutcome>& outcomes, size_t first) {
  return std::any_of(outcomes.begin() + static_cast<std::ptrdiff_t>(first), outcomes.end(),
                     [](const RuleOutcome& outcome) { return outcome.applied; });
}

// Why nothing changed, where that is so.
std::string WhyUnchanged(const Rewriting& rewriting, const Inspection& inspection) {
  if (inspection.layers.empty())
    return "nothing to do: no attention layer (GroupQueryAttention, Attention) in the model";
  const auto shared = std::count_if(inspection.layers.begin(), inspection.layers.end(),
                                    [](const auto& layer) { return layer.kind == LayerKind::kShared; });
  if (!rewriting.outcomes.empty())
    return fmt::format(
        "nothing changed: {} of {} attention layers are shared; the nearest misses and their reasons are "
        "listed",
        shared, inspection.layers.size());
  if (!rewriting.options.skip.empty()) return "nothing changed: no rule that was not skipped has anything to do";
  if (shared == 0) return fmt::format("nothing to do: none of {} attention layers is shared", inspection.layers.size());
  return fmt::format("nothing to do: all {} attention layers have the target's form already", inspection.layers.size());
}

}  // namespace

Result<Inspection> Inspect(const std::string& model_path, const InspectOptions& options) {
  KVSHARE_ASSIGN_OR_RETURN(ModelFile file, LoadModel(model_path));
  KVSHARE_ASSIGN_OR_RETURN(const Graph graph, Graph::Make(std::move(file.model), file.folder));
  KVSHARE_RETURN_IF_ERROR(Validate(graph));
  Inspection inspection = Describe(graph);
  inspection.equal_caches = DescribeEqualCaches(graph);
  if (!options.cuda.empty()) {
    KVSHARE_ASSIGN_OR_RETURN(inspection.cuda, PlaceOnCuda(graph, options.cuda));
  }
  return inspection;
}

Result<RewriteReport> graph::RewriteGraph(Graph& graph, const RewriteOptions& asked) {
  KVSHARE_RETURN_IF_ERROR(CheckOptions(asked));
  RewriteOptions options = asked;
  options.rope = asked.rope.value_or(DefaultRope(asked.target));
  RewriteReport report;
  report.before = Describe(graph);
  report.before.equal_caches = DescribeEqualCaches(graph);
  report.after = report.before;
  Rewriting rewriting{graph, options, FeaturesOf(options, *ParseVersion(options.min_ort) < OrtVersion{1, 31})};
  for (const Rule& rule : AllRules()) {
    const bool skipped = std::find(options.skip.begin(), options.skip.end(), rule.name) != options.skip.end();
    if (skipped || !rewriting.wanted.HasAnyOf(rule.serves)) continue;
    rewriting.LookAgain();
    const size_t told = rewriting.outcomes.size();
    rule.run(rewriting);
    if (const Status status = Validate(graph); !status.ok())
      return Status::Internal(fmt::format("rule {} broke the model: {}", rule.name, status.message()));
    if (!HasChanged(rewriting.outcomes, told)) continue;
    Inspection after = Describe(graph);
    after.equal_caches = rule.run == RunEqualCaches ? DescribeEqualCaches(graph) : report.after.equal_caches;
    report.savings.push_back(SavingOf(rule.name, report.after, after));
    report.after = std::move(after);
  }
  report.changed = HasChanged(rewriting.outcomes, 0);
  if (!report.changed) rewriting.Note(WhyUnchanged(rewriting, report.before));
  report.outcomes = std::move(rewriting.outcomes);
  report.notes = std::move(rewriting.notes);
  return report;
}

Result<RewriteReport> Rewrite(const std::string& model_path, const std::string& out_path,
                              const RewriteOptions& options) {
  KVSHARE_RETURN_IF_ERROR(CheckOptions(options));
  KVSHARE_ASSIGN_OR_RETURN(ModelFile file, LoadModel(model_path));
  KVSHARE_ASSIGN_OR_RETURN(Graph graph, Graph::Make(std::move(file.model), file.folder));
  KVSHARE_RETURN_IF_ERROR(Validate(graph));
  KVSHARE_ASSIGN_OR_RETURN(RewriteReport report, RewriteGraph(graph, options));
  if (options.dry_run) return report;
  onnx::ModelProto model = std::move(graph).Release();
  RecordProvenance(model, options, report);
  KVSHARE_RETURN_IF_ERROR(
      SaveModel(std::move(model), file, out_path, {options.weights_name, options.link_weights, options.progress}));
  return report;
}

}  // namespace kvshare
