#include <fmt/format.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

#include "genai/window_caches.h"
#include "graph/atomic_file.h"
#include "graph/external_data.h"
#include "kvshare/genai.h"
#include "kvshare/provider.h"
#include "kvshare/rewrite.h"

namespace kvshare {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kConfig = "genai_config.json";
constexpr const char* kBackup = "genai_config.json.before-kvshare";
// onnxruntime-genai's own files nest ten levels. Whoever writes JSON calls itself once a level.
constexpr int kDeepestJson = 100;

struct Config {
  std::string text;
  Json json;
};

Result<Config> ReadConfig(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (!file || !(text << file.rdbuf()))
    return Status::InvalidInput(
        fmt::format("'{}' cannot be read; needs a folder that onnxruntime-genai's builder wrote", path.string()));
  bool is_deep = false;
  const auto keep = [&](int depth, Json::parse_event_t, const Json&) {
    is_deep = is_deep || depth > kDeepestJson;
    return !is_deep;
  };
  Config config{text.str(), Json::parse(text.str(), keep, /*allow_exceptions=*/false)};
  if (is_deep)
    return Status::InvalidInput(
        fmt::format("'{}' nests deeper than {} levels; needs onnxruntime-genai's format", path.string(), kDeepestJson));
  if (!config.json.is_object())
    return Status::InvalidInput(fmt::format("'{}' is no JSON object; needs onnxruntime-genai's format", path.string()));
  return config;
}

// A member of an object that is itself an object; null where there is none.
Json* Member(Json& object, const char* name) {
  const auto found = object.is_object() ? object.find(name) : object.end();
  return object.is_object() && found != object.end() && found->is_object() ? &*found : nullptr;
}

// The models that a decoder runs: itself, or the stages of its pipeline.
std::vector<std::pair<std::string, Json*>> Decoders(Json& decoder) {
  const auto pipeline = decoder.find("pipeline");
  if (pipeline == decoder.end() || !pipeline->is_array()) return {{"model.decoder", &decoder}};
  std::vector<std::pair<std::string, Json*>> stages;
  for (Json& entry : *pipeline) {
    if (!entry.is_object()) continue;
    for (auto& [name, stage] : entry.items())
      if (stage.is_object()) stages.emplace_back(fmt::format("model.decoder.pipeline.{}", name), &stage);
  }
  return stages;
}

Status AddTo(const std::string& place, Json& decoder, const Json& ours, std::vector<std::string>& changes) {
  Json& session = decoder["session_options"];
  if (session.is_null()) session = Json::object();
  if (!session.is_object())
    return Status::InvalidInput(fmt::format("{}: '{}.session_options' is no object", kConfig, place));
  Json& providers = session["provider_options"];
  if (providers.is_null()) providers = Json::array();
  if (!providers.is_array())
    return Status::InvalidInput(fmt::format("{}: '{}.session_options.provider_options' is no list", kConfig, place));
  for (Json& provider : providers) {
    if (!provider.is_object() || provider.size() != 1)
      return Status::InvalidInput(fmt::format(
          "{}: an entry of '{}.session_options.provider_options' is no object of one provider", kConfig, place));
    const std::string& name = provider.begin().key();
    if (name == kProviderName) {
      if (provider == ours) return {};
      changes.push_back(fmt::format("{}: options of {} were {}, are {}", place, kProviderName, provider.begin()->dump(),
                                    ours.begin()->dump()));
      provider = ours;
      return {};
    }
    if (name != "cpu" && name != "CPUExecutionProvider")
      return Status::Refused(fmt::format("{}: '{}' runs on provider '{}'; {} is for the CPU and would stand aside",
                                         kConfig, place, name, kProviderName));
  }
  providers.insert(providers.begin(), ours);
  changes.push_back(fmt::format("{}: provider_options begin with {}", place, ours.dump()));
  return {};
}

Status Edit(const fs::path& folder, Json& config, const std::map<std::string, std::string>& options,
            std::vector<std::string>& changes) {
  Json* const model = Member(config, "model");
  Json* const decoder = model == nullptr ? nullptr : Member(*model, "decoder");
  if (decoder == nullptr)
    return Status::InvalidInput(
        fmt::format("{} has no 'model.decoder'; needs the configuration of a decoder", kConfig));
  const Json ours = {{kProviderName, options}};
  for (const auto& [place, stage] : Decoders(*decoder)) KVSHARE_RETURN_IF_ERROR(AddTo(place, *stage, ours, changes));
  const auto file = decoder->find("filename");
  if (file == decoder->end() || !file->is_string()) return {};
  KVSHARE_ASSIGN_OR_RETURN(const Inspection inspection, Inspect((folder / file->get<std::string>()).string()));
  return genai::SetWindowCaches(inspection, config, changes);
}

Status CheckOptions(const std::map<std::string, std::string>& options) {
  ProviderOptions parsed;
  for (const auto& [name, value] : options) KVSHARE_RETURN_IF_ERROR(SetProviderOption(name, value, parsed));
  return {};
}

// What a copy of `folder` has beside its configuration, and no backup: files and folders, each behind its own folder.
Result<std::vector<fs::path>> ContentsOf(const fs::path& folder) {
  std::vector<fs::path> contents;
  std::error_code error;
  for (fs::recursive_directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const fs::path path = it->path().lexically_relative(folder);  // fs::relative would follow links
    std::error_code ignored;
    const bool is_folder = it->is_directory(ignored);
    if (is_folder && it->is_symlink(ignored))
      return Status::Refused(
          fmt::format("'{}' is a link to a folder; needs a folder of files to copy", it->path().string()));
    if (!is_folder && !it->is_regular_file(ignored))
      return Status::Refused(
          fmt::format("'{}' is no file, or a link to none; needs a folder of files to copy", it->path().string()));
    if (path != kConfig && path.filename() != kBackup) contents.push_back(path);
  }
  if (error) return Status::Internal(fmt::format("cannot read '{}': {}", folder.string(), error.message()));
  return contents;
}

// Whoever finds a part of a copy finds no configuration in it: that comes last.
Status CopyContents(const fs::path& folder, const fs::path& out, const std::vector<fs::path>& contents,
                    const graph::CopyProgress& progress) {
  std::error_code error;
  for (const fs::path& path : contents) {
    if (!fs::is_directory(folder / path, error)) {
      KVSHARE_RETURN_IF_ERROR(graph::CopyFileAtomically(folder / path, out / path, progress));
      continue;
    }
    fs::create_directories(out / path, error);
    if (error) return Status::Internal(fmt::format("cannot make '{}': {}", (out / path).string(), error.message()));
  }
  return {};
}

// The folder of a copy; it takes itself back unless it is kept.
class NewFolder {
 public:
  // For a copy of `folder`, whose place is absent or empty.
  static Status Check(const fs::path& folder, const fs::path& out) {
    std::error_code error;
    if (graph::LiesIn(fs::weakly_canonical(fs::absolute(out, error), error), fs::canonical(folder, error)))
      return Status::InvalidInput(fmt::format("'{}' lies in '{}', whose copy it would be; needs a folder outside",
                                              out.string(), folder.string()));
    if (fs::exists(out, error) && !fs::is_empty(out, error))
      return Status::InvalidInput(
          fmt::format("'{}' holds files; needs a folder that is absent or empty", out.string()));
    return {};
  }

  explicit NewFolder(fs::path path) : path_(std::move(path)), was_there_(fs::exists(path_, ignored_)) {}
  NewFolder(const NewFolder&) = delete;
  NewFolder& operator=(const NewFolder&) = delete;
  ~NewFolder() {
    if (kept_) return;
    if (!was_there_) {
      fs::remove_all(path_, ignored_);
      return;
    }
    for (fs::directory_iterator it(path_, ignored_), end; it != end; it.increment(ignored_))
      fs::remove_all(it->path(), ignored_);
  }

  Status Make() {
    std::error_code error;
    fs::create_directories(path_, error);
    if (error) return Status::Internal(fmt::format("cannot make '{}': {}", path_.string(), error.message()));
    return {};
  }
  void Keep() { kept_ = true; }

 private:
  std::error_code ignored_;
  fs::path path_;
  bool was_there_;
  bool kept_ = false;
};

// A copy of `folder` at `out` with `config` in the place of its configuration: whole, or nothing.
Status CopyFolder(const fs::path& folder, const fs::path& out, std::string_view config,
                  const graph::CopyProgress& progress) {
  KVSHARE_RETURN_IF_ERROR(NewFolder::Check(folder, out));
  KVSHARE_ASSIGN_OR_RETURN(const std::vector<fs::path> contents, ContentsOf(folder));
  NewFolder made(out);
  KVSHARE_RETURN_IF_ERROR(made.Make());
  KVSHARE_RETURN_IF_ERROR(CopyContents(folder, out, contents, progress));
  KVSHARE_RETURN_IF_ERROR(graph::WriteFileAtomically(out / kConfig, config));
  made.Keep();
  return {};
}

}  // namespace

Result<GenaiReport> AddGenaiProvider(const std::string& folder, const std::string& out,
                                     const std::map<std::string, std::string>& options,
                                     const std::function<void(uint64_t done, uint64_t bytes)>& progress) {
  KVSHARE_RETURN_IF_ERROR(CheckOptions(options));
  KVSHARE_ASSIGN_OR_RETURN(Config config, ReadConfig(fs::path(folder) / kConfig));
  GenaiReport report;
  KVSHARE_RETURN_IF_ERROR(Edit(folder, config.json, options, report.changes));
  const std::string text = report.changes.empty() ? config.text : config.json.dump(4) + "\n";
  report.config = ((out.empty() ? fs::path(folder) : fs::path(out)) / kConfig).string();
  if (!out.empty()) {
    KVSHARE_RETURN_IF_ERROR(CopyFolder(folder, out, text, progress));
    return report;
  }
  if (report.changes.empty()) return report;
  const fs::path backup = fs::path(folder) / kBackup;
  std::error_code ignored;
  if (!fs::exists(backup, ignored)) KVSHARE_RETURN_IF_ERROR(graph::WriteFileAtomically(backup, config.text));
  report.backup = backup.string();
  KVSHARE_RETURN_IF_ERROR(graph::WriteFileAtomically(report.config, text));
  return report;
}

Result<GenaiReport> UndoGenaiProvider(const std::string& folder) {
  const fs::path config = fs::path(folder) / kConfig;
  const fs::path backup = fs::path(folder) / kBackup;
  std::error_code error;
  if (!fs::exists(backup, error))
    return Status::InvalidInput(fmt::format("'{}' is not there: nothing to undo", backup.string()));
  fs::rename(backup, config, error);
  if (error) return Status::Internal(fmt::format("cannot put '{}' back: {}", backup.string(), error.message()));
  return GenaiReport{config.string(), "", {fmt::format("{} is what it was before kvshare", kConfig)}};
}

}  // namespace kvshare
