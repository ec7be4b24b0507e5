#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "report/json.h"
#include "report/report.h"

namespace kvshare::report {
namespace {

const char* KindOf(const AttentionLayer& layer) { return layer.kind == LayerKind::kOwn ? "own" : "shared"; }

std::string OpOf(const AttentionLayer& layer) {
  const char* op = layer.form == LayerForm::kAttention ? "Attention" : "GroupQueryAttention";
  return fmt::format("{}{}{}{}{}", layer.domain, layer.domain.empty() ? "" : "::", op,
                     layer.place.empty() ? "" : " in ", layer.place);
}

std::string WindowOf(const AttentionLayer& layer) {
  if (!layer.window_known) return "?";
  return layer.window < 0 ? "full" : fmt::format("{}", layer.window);
}

std::string SourceOf(const AttentionLayer& layer) {
  if (layer.kind == LayerKind::kOwn) return "-";
  return layer.source < 0 ? "input" : fmt::format("{}", layer.source);
}

Json LayerJson(const AttentionLayer& l) {
  return {{"index", l.index},
          {"node", l.node},
          {"place", l.place},
          {"domain", l.domain},
          {"form", l.form == LayerForm::kAttention ? "Attention" : "GroupQueryAttention"},
          {"kind", KindOf(l)},
          {"source", l.source},
          {"source_key", l.source_key},
          {"window", l.window_known ? Json(l.window) : Json()},
          {"query_heads", l.query_heads},
          {"kv_heads", l.kv_heads},
          {"expansion", l.expansion},
          {"head_size", l.head_size},
          {"cache_rows", l.cache_rows},
          {"row_bytes", l.row_bytes},
          {"written", l.written},
          {"note", l.note}};
}

std::string DomainOf(const std::string& import) { return import.empty() ? "ai.onnx" : import; }

Json Opsets(const Inspection& i) {
  Json opsets = Json::object();
  for (size_t n = 0; n < i.imports.size(); ++n) opsets[DomainOf(i.imports[n])] = i.opsets[n];
  return opsets;
}

Json CudaJson(const CudaPlacement& c) {
  return {{"release", c.release},
          {"cuda_nodes", c.cuda_nodes},
          {"cpu_nodes", c.cpu_nodes},
          {"unknown_nodes", c.unknown_nodes},
          {"attention_on_cpu", c.attention_on_cpu},
          {"copies", c.copies},
          {"attention_copies", c.attention_copies},
          {"notes", c.notes}};
}

std::string CudaText(const CudaPlacement& c) {
  std::string text = fmt::format(
      "CUDA of ONNX Runtime {}, predicted: {} nodes on the GPU, {} on the CPU, {} not known; {} attention and mask "
      "nodes "
      "on the CPU; {} copies between GPU and host, {} of them around attention\n",
      c.release, c.cuda_nodes, c.cpu_nodes, c.unknown_nodes, c.attention_on_cpu, c.copies, c.attention_copies.size());
  for (const std::string& note : c.notes) text += fmt::format("  {}\n", OneLine(note));
  return text;
}

Json EqualCachesJson(const Inspection& i) {
  Json caches = Json::array();
  for (const EqualCache& c : i.equal_caches)
    caches.push_back({{"past", c.past}, {"present", c.present}, {"of", c.of}, {"bytes", c.bytes}});
  return caches;
}

Json InspectionJson(const Inspection& i) {
  Json layers = Json::array();
  for (const auto& layer : i.layers) layers.push_back(LayerJson(layer));
  Json json = {{"producer", i.producer},
               {"opsets", Opsets(i)},
               {"layers", std::move(layers)},
               {"nodes", i.nodes},
               {"mask_nodes", i.mask_nodes},
               {"borrowed_copies", i.borrowed_copies},
               {"repeat_nodes", i.repeat_nodes},
               {"unfused_layers", i.unfused_layers},
               {"named_unused_presents", i.named_unused_presents},
               {"equal_caches", EqualCachesJson(i)},
               {"warnings", i.warnings}};
  if (i.cuda) json["cuda"] = CudaJson(*i.cuda);
  return json;
}

std::string Counts(const Inspection& i) {
  return fmt::format(
      "{} nodes; {} mask nodes; {} Transpose/Reshape on borrowed K/V; {} nodes that repeat K/V heads; {} named unused "
      "presents\n",
      i.nodes, i.mask_nodes, i.borrowed_copies, i.repeat_nodes, i.named_unused_presents);
}

std::string BytesText(int64_t bytes) {
  constexpr int64_t kMega = 1000000;
  return bytes < kMega ? fmt::format("{} bytes", bytes)
                       : fmt::format("{:.1f} MB", static_cast<double>(bytes) / static_cast<double>(kMega));
}

// Who wrote the model, and in which forms its layers are.
std::string Origin(const Inspection& i) {
  std::vector<std::string> opsets;
  for (size_t n = 0; n < i.imports.size(); ++n)
    opsets.push_back(fmt::format("{} {}", DomainOf(i.imports[n]), i.opsets[n]));
  std::string text =
      OneLine(fmt::format("producer: {}; {}", i.producer.empty() ? "not named" : i.producer, fmt::join(opsets, ", ")));
  text += "\n";
  std::vector<std::pair<std::string, int>> forms;
  for (const AttentionLayer& layer : i.layers) {
    const auto known = std::ranges::find(forms, layer.written, &std::pair<std::string, int>::first);
    if (known == forms.end()) {
      forms.emplace_back(layer.written, 1);
    } else {
      ++known->second;
    }
  }
  for (const auto& [form, layers] : forms) text += fmt::format("form: {} x {}\n", layers, form);
  if (i.unfused_layers > 0) text += fmt::format("form: {} x MatMul and Softmax\n", i.unfused_layers);
  return text;
}

// What the caches of one sequence take after kCacheTokens tokens.
std::string CachesText(const Inspection& i) {
  int64_t caches = 0;
  int64_t kept = 0;
  int64_t growing = 0;  // bytes a token
  int64_t fixed = 0;
  for (const AttentionLayer& layer : i.layers) {
    if (layer.row_bytes == 0) continue;
    ++caches;
    kept += layer.cache_rows > 0 ? 1 : 0;
    (layer.cache_rows > 0 ? fixed : growing) += layer.row_bytes * std::max<int64_t>(layer.cache_rows, 1);
  }
  if (caches == 0) return "";
  const std::string of_fixed_size = kept == 0 ? "" : fmt::format("; {} of fixed size take {}", kept, BytesText(fixed));
  return fmt::format("caches of {} layers: {} bytes a token{}; {} at {} tokens\n", caches, growing, of_fixed_size,
                     BytesText(i.CacheBytes()), kCacheTokens);
}

// What the caches take that always hold what another one does.
std::string EqualCachesText(const Inspection& i) {
  if (i.equal_caches.empty()) return "";
  const EqualCache& first = i.equal_caches.front();
  return fmt::format(
      "{} caches always hold what another does, {} at {} tokens: '{}' what '{}' does{}; kvshare rewrite deletes them\n",
      i.equal_caches.size(), BytesText(i.EqualCacheBytes()), kCacheTokens, OneLine(first.past), OneLine(first.of),
      i.equal_caches.size() == 1 ? "" : ", ...");
}

// "; saves 34 mask nodes, 1.2 MB of caches at 32768 tokens", or nothing.
std::string SavingText(const RewriteReport& report, const std::string& rule) {
  const auto found = std::ranges::find(report.savings, rule, &RuleSaving::rule);
  if (found == report.savings.end()) return "";
  std::vector<std::string> parts;
  const auto add = [&](int64_t count, const char* what) {
    if (count > 0) parts.push_back(fmt::format("{} {}", count, what));
  };
  add(found->nodes, "nodes");
  add(found->mask_nodes, "mask nodes");
  add(found->copies, "nodes that copy K/V");
  add(found->presents, "unused presents");
  if (found->cache_bytes > 0)
    parts.push_back(fmt::format("{} of caches at {} tokens", BytesText(found->cache_bytes), kCacheTokens));
  return parts.empty() ? "" : fmt::format("; saves {}", fmt::join(parts, ", "));
}

Json SavingJson(const RuleSaving& s) {
  return {{"rule", s.rule},     {"nodes", s.nodes},       {"mask_nodes", s.mask_nodes},
          {"copies", s.copies}, {"presents", s.presents}, {"cache_bytes", s.cache_bytes}};
}

// One line for many nodes of one fate: "16 x <reason>: first, second, ...".
std::string Outcomes(const RewriteReport& report, bool applied) {
  std::vector<std::string> order;
  std::map<std::string, std::vector<std::string>> nodes;
  for (const auto& outcome : report.outcomes) {
    if (outcome.applied != applied) continue;
    const std::string key = applied ? outcome.rule : fmt::format("{}: {}", outcome.rule, outcome.reason);
    auto& list = nodes[key];
    if (list.empty()) order.push_back(key);
    list.push_back(outcome.node);
  }
  std::string text;
  for (const std::string& key : order) {
    const auto& list = nodes[key];
    text += fmt::format("  {:3} x {} ({}{}){}\n", list.size(), OneLine(key), OneLine(list.front()),
                        list.size() > 1 ? ", ..." : "", applied ? SavingText(report, key) : "");
  }
  return text;
}

}  // namespace

std::string ToText(const Inspection& inspection) {
  std::string text = fmt::format("{:>5}  {:6}  {:>6}  {:>6}  {:>7}  {:>5}  {}\n", "layer", "kind", "source", "window",
                                 "heads", "D", "operator");
  for (const auto& layer : inspection.layers) {
    text += fmt::format("{:5}  {:6}  {:>6}  {:>6}  {:>7}  {:>5}  {}{}\n", layer.index, KindOf(layer), SourceOf(layer),
                        WindowOf(layer), fmt::format("{}/{}", layer.query_heads, layer.kv_heads),
                        layer.head_size == 0 ? "?" : fmt::format("{}", layer.head_size), OneLine(OpOf(layer)),
                        layer.note.empty() ? "" : "  ! " + OneLine(layer.note));
  }
  text += Origin(inspection) + Counts(inspection) + CachesText(inspection) + EqualCachesText(inspection);
  if (inspection.cuda) text += CudaText(*inspection.cuda);
  for (const auto& warning : inspection.warnings) text += fmt::format("warning: {}\n", OneLine(warning));
  return text;
}

std::string ToJson(const Inspection& inspection) { return Dump(InspectionJson(inspection)); }

std::string ToText(const RewriteReport& report) {
  std::string text;
  if (const auto applied = Outcomes(report, true); !applied.empty()) text += "applied\n" + applied;
  if (const auto declined = Outcomes(report, false); !declined.empty()) text += "left alone\n" + declined;
  for (const auto& note : report.notes) text += fmt::format("note: {}\n", OneLine(note));
  if (report.changed)
    text += "before: " + Counts(report.before) + CachesText(report.before) + "after:  " + Counts(report.after) +
            CachesText(report.after);
  for (const auto& warning : report.after.warnings) text += fmt::format("warning: {}\n", OneLine(warning));
  return text;
}

std::string ToJson(const RewriteReport& report) {
  Json outcomes = Json::array();
  for (const RuleOutcome& o : report.outcomes)
    outcomes.push_back(
        {{"rule", o.rule}, {"node", o.node}, {"applied", o.applied}, {"reason", o.reason}, {"code", o.code}});
  Json savings = Json::array();
  for (const RuleSaving& saving : report.savings) savings.push_back(SavingJson(saving));
  return Dump({{"changed", report.changed},
               {"outcomes", std::move(outcomes)},
               {"savings", std::move(savings)},
               {"notes", report.notes},
               {"before", InspectionJson(report.before)},
               {"after", InspectionJson(report.after)}});
}

}  // namespace kvshare::report
