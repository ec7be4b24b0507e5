// Rewrites of text graphs, for tests of rules.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <utility>

#include "graph/rewrite_graph.h"
#include "tests/graph/two_layers.h"

namespace kvshare::graph {

inline RewriteOptions To(Target target) {
  RewriteOptions options;
  options.target = target;
  return options;
}

// A graph before and after, as bytes, and what the rules said.
struct Rewritten {
  std::string before;
  std::string after;
  RewriteReport report;

  // Why `rule` left a layer alone; empty where it left none.
  std::string DeclineOf(std::string_view rule) const {
    const auto* outcome = FirstDecline(rule);
    return outcome != nullptr ? outcome->reason : "";
  }
  // The same behind its code.
  std::string CodedDeclineOf(std::string_view rule) const {
    const auto* outcome = FirstDecline(rule);
    return outcome != nullptr ? outcome->code + ": " + outcome->reason : "";
  }

 private:
  const RuleOutcome* FirstDecline(std::string_view rule) const {
    for (const auto& outcome : report.outcomes)
      if (outcome.rule == rule && !outcome.applied) return &outcome;
    return nullptr;
  }
};

inline Rewritten RewriteIn(Graph& graph, const RewriteOptions& options) {
  Rewritten result;
  result.before = graph.Copy().SerializeAsString();
  auto report = RewriteGraph(graph, options);
  EXPECT_TRUE(report.ok()) << (report.ok() ? "" : report.status().message());
  result.after = graph.Copy().SerializeAsString();
  result.report = *std::move(report);
  return result;
}

inline Rewritten RewriteText(std::string_view text, const RewriteOptions& options) {
  Graph graph = GraphOf(text);
  return RewriteIn(graph, options);
}

inline std::string TextAfter(std::string_view text, const RewriteOptions& options) {
  Graph graph = GraphOf(text);
  EXPECT_TRUE(RewriteGraph(graph, options).ok());
  return ToText(graph.Copy());
}

// `text` with `to` in each place of `from`.
inline std::string WithText(std::string_view text, std::string_view from, std::string_view to) {
  std::string result(text);
  for (size_t at = result.find(from); at != std::string::npos; at = result.find(from, at + to.size()))
    result.replace(at, from.size(), to);
  return result;
}

}  // namespace kvshare::graph
