#include "graph/match/equal_caches.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "graph/cache_names.h"
#include "graph/match/readers.h"

namespace kvshare::graph {
namespace {

struct Cache {
  std::string past;
  std::string present;
};

// Values in which another input than those of `caches` has a part.
std::unordered_set<std::string> ValuesOfOtherInputs(const Graph& graph, const std::vector<Cache>& caches) {
  std::unordered_set<std::string> values;
  for (const auto& input : graph.proto().input()) values.insert(input.name());
  for (const Cache& cache : caches) values.erase(cache.past);
  return MadeWith(graph, std::move(values));
}

// In the order in which they are written. What a step hands on as it is, as keys of an encoder, began elsewhere: how
// is not known.
std::vector<Cache> CachesOf(const Graph& graph) {
  std::multimap<size_t, Cache> by_place;
  std::unordered_map<const Node*, size_t> places;
  for (const Node* node : graph.nodes()) places.emplace(node, places.size());
  for (const auto& input : graph.proto().input())
    for (const std::string& present : PresentNames(input.name())) {
      const Node* writer = graph.IsOutput(present) && graph.IsInput(input.name()) ? graph.Producer(present) : nullptr;
      if (writer == nullptr) continue;
      by_place.insert({places.at(writer), {input.name(), present}});
      break;
    }
  std::vector<Cache> caches;
  for (auto& [place, cache] : by_place) caches.push_back(std::move(cache));
  const auto written = ValuesOfOtherInputs(graph, caches);
  std::erase_if(caches, [&](const Cache& cache) { return !written.contains(cache.present); });
  return caches;
}

// What each cache of a layer holds, keys or values, by graph input.
std::unordered_map<std::string, const char*> RolesOf(const std::vector<Layer>& layers) {
  std::unordered_map<std::string, const char*> roles;
  for (const Layer& layer : layers) {
    if (layer.graph->IsFunction()) continue;
    const int slot = layer.IsGqa() ? 3 : 4;
    for (const std::string& key : {Input(*layer.node, slot), layer.key_join.past, layer.static_key.cache})
      roles[key] = "keys";
    for (const std::string& value : {Input(*layer.node, slot + 1), layer.value_join.past, layer.static_value.cache})
      roles[value] = "values";
  }
  return roles;
}

// Type and shape, names of extents included.
std::string Declared(const Graph& graph, const std::string& value) {
  std::string text = fmt::format("{}", graph.ElementType(value));
  const auto shape = graph.Shape(value);
  if (!shape) return text + " of any shape";
  for (size_t axis = 0; axis < shape->size(); ++axis)
    text += fmt::format(" {}{}", (*shape)[axis], graph.ExtentName(value, static_cast<int64_t>(axis)));
  return text;
}

// For each cache the first that has its text.
std::vector<size_t> FirstOfEach(const std::vector<std::string>& texts) {
  std::unordered_map<std::string, size_t> first;
  std::vector<size_t> leaders;
  for (const std::string& text : texts) leaders.push_back(first.emplace(text, leaders.size()).first->second);
  return leaders;
}

EqualCaches Told(const std::vector<Cache>& caches, const std::vector<size_t>& leaders, ValueNumbers numbers) {
  EqualCaches equal;
  for (size_t i = 0; i < caches.size(); ++i)
    if (leaders[i] != i)
      equal.caches.push_back({.past = caches[i].past, .present = caches[i].present, .of = caches[leaders[i]].past});
  if (!equal.caches.empty()) equal.numbers = std::move(numbers);
  return equal;
}

bool AreAllAlone(const std::vector<size_t>& leaders) {
  return std::unordered_set<size_t>(leaders.begin(), leaders.end()).size() == leaders.size();
}

}  // namespace

// Caches that are declared alike are taken for equal until what a step makes of them, if they are, tells them apart:
// the largest set of equalities that each step keeps.
EqualCaches FindEqualCaches(const Graph& graph, const std::vector<Layer>& layers) {
  const std::vector<Cache> caches = CachesOf(graph);
  const auto roles = RolesOf(layers);
  std::vector<std::string> texts;
  for (const Cache& cache : caches) {
    const auto role = roles.find(cache.past);
    texts.push_back(Declared(graph, cache.past) + (role == roles.end() ? "" : role->second));
  }
  std::vector<size_t> leaders = FirstOfEach(texts);
  for (int round = 0; round < kMostRounds && !AreAllAlone(leaders); ++round) {
    ValueNumbers::Leaders taken;
    for (size_t i = 0; i < caches.size(); ++i) taken[caches[i].past] = caches[leaders[i]].past;
    ValueNumbers numbers(graph, taken);
    texts.clear();
    for (size_t i = 0; i < caches.size(); ++i)
      texts.push_back(fmt::format("{} {}", leaders[i], numbers.Of(caches[i].present)));
    std::vector<size_t> next = FirstOfEach(texts);
    if (next == leaders) return Told(caches, leaders, std::move(numbers));
    leaders = std::move(next);
  }
  return {};
}

}  // namespace kvshare::graph
