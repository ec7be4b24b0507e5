#include "genai/window_caches.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>

namespace kvshare::genai {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kPastKeyNames = "past_key_values.%d.key";  // onnxruntime-genai's default

// The number that `pattern`, which has one %d, has in `name`.
std::optional<int64_t> NumberIn(const std::string& name, const std::string& pattern) {
  const size_t at = pattern.find("%d");
  if (at == std::string::npos) return std::nullopt;
  const std::string_view suffix = std::string_view(pattern).substr(at + 2);
  if (name.size() <= at + suffix.size() || name.compare(0, at, pattern, 0, at) != 0 || !name.ends_with(suffix))
    return std::nullopt;
  const char* const end = name.data() + name.size() - suffix.size();
  int64_t number = 0;
  const auto [stop, error] = std::from_chars(name.data() + at, end, number);
  return error == std::errc() && stop == end ? std::optional(number) : std::nullopt;
}

std::string PastKeyNames(const Json& decoder) {
  const auto names = decoder.find("inputs");
  if (names == decoder.end() || !names->is_object()) return kPastKeyNames;
  const auto given = names->find("past_key_names");
  return given != names->end() && given->is_string() ? given->get<std::string>() : kPastKeyNames;
}

// What the layers with window-sized caches have in common.
struct Windows {
  int64_t window = 0;
  int64_t rows = 0;
  std::vector<int64_t> caches;  // by onnxruntime-genai's numbers
  int64_t Slack() const { return rows - window; }
};

Result<Windows> WindowsOf(const Inspection& model, const std::string& names) {
  Windows windows;
  for (const AttentionLayer& layer : model.layers) {
    const bool is_ours = layer.domain == "kvshare" && layer.form == LayerForm::kGroupQueryAttention;
    if (!is_ours || layer.kind != LayerKind::kOwn || layer.cache_rows == 0) continue;
    if (!windows.caches.empty() && (layer.window != windows.window || layer.cache_rows != windows.rows))
      return Status::Refused(
          fmt::format("layer '{}' has a cache of {} rows for a window of {}, and earlier ones have {} for {}; "
                      "onnxruntime-genai has one size for all; needs a rewrite without option 'window_caches'",
                      layer.node, layer.cache_rows, layer.window, windows.rows, windows.window));
    const auto number = NumberIn(layer.past_key, names);
    if (!number)
      return Status::Refused(
          fmt::format("layer '{}' has a window-sized cache in '{}', whose number '{}' does not tell; needs "
                      "'model.decoder.inputs.past_key_names' as the model has them",
                      layer.node, layer.past_key, names));
    windows.window = layer.window;
    windows.rows = layer.cache_rows;
    windows.caches.push_back(*number);
  }
  return windows;
}

// Sets a member and says so, where it is not that already.
void Set(Json& object, const char* place, const char* name, const Json& value, std::vector<std::string>& changes) {
  if (const auto found = object.find(name); found != object.end() && *found == value) return;
  object[name] = value;
  changes.push_back(fmt::format("{}.{} is {}", place, name, value.dump()));
}

}  // namespace

Status SetWindowCaches(const Inspection& model, Json& config, std::vector<std::string>& changes) {
  Json& decoder = config["model"]["decoder"];
  KVSHARE_ASSIGN_OR_RETURN(const Windows windows, WindowsOf(model, PastKeyNames(decoder)));
  if (windows.caches.empty()) return {};
  if (windows.Slack() == 0)
    return Status::Refused(
        "the window-sized caches hold no row beside the window, which onnxruntime-genai reads as its own choice of "
        "rows; needs a rewrite with option 'window_caches' of at least 1");
  Json& search = config["search"];
  if (search.is_null()) search = Json::object();
  if (!search.is_object()) return Status::InvalidInput("genai_config.json: 'search' is no object");
  Set(decoder, "model.decoder", "sliding_window",
      {{"window_size", windows.window},
       {"slide_key_value_cache", false},
       {"slide_inputs", false},
       {"layers", windows.caches},
       {"cache_slack", windows.Slack()}},
      changes);
  Set(search, "search", "past_present_share_buffer", true, changes);
  const auto chunk = search.find("chunk_size");
  const bool fits = chunk != search.end() && chunk->is_number_integer() && chunk->get<int64_t>() > 0 &&
                    chunk->get<int64_t>() <= windows.Slack() + 1;
  if (!fits) Set(search, "search", "chunk_size", windows.Slack() + 1, changes);
  return {};
}

}  // namespace kvshare::genai
