#include "graph/provenance.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "graph/rules/kv_cache.h"
#include "kvshare/version.h"

namespace kvshare::graph {
namespace {

template <typename Table, typename Value>
std::string_view NameIn(const Table& table, Value value) {
  return std::ranges::find(table, value, &Table::value_type::second)->first;
}

std::string& Entry(onnx::ModelProto& model, const char* key) {
  for (auto& entry : *model.mutable_metadata_props())
    if (entry.key() == key) return *entry.mutable_value();
  auto& entry = *model.add_metadata_props();
  entry.set_key(key);
  return *entry.mutable_value();
}

}  // namespace

void RecordProvenance(onnx::ModelProto& model, const RewriteOptions& options, const RewriteReport& report) {
  if (!report.changed) return;
  std::vector<std::string> rules;
  for (const RuleOutcome& outcome : report.outcomes)
    if (outcome.applied && std::find(rules.begin(), rules.end(), outcome.rule) == rules.end())
      rules.push_back(outcome.rule);
  const Rope rope = options.rope.value_or(DefaultRope(options.target));
  std::string& lines = Entry(model, kProvenanceKey);
  if (!lines.empty()) lines += '\n';
  lines += fmt::format(
      "version={} target={} keep_own={:d} rope={} min_ort={} prune_inputs={:d} fast_prefill={:d} window_caches={} "
      "kv_cache={} rules={}",
      kVersion, NameIn(kTargets, options.target), options.keep_own, NameIn(kRopes, rope), options.min_ort,
      options.prune_inputs, options.fast_prefill, options.window_caches.value_or(-1),
      options.kv_cache ? NameOf(options.kv_cache->type) : "as-it-was", fmt::join(rules, ","));
}

}  // namespace kvshare::graph
