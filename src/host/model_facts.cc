#include "host/model_facts.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "kvshare/doctor.h"

namespace kvshare::host {
namespace {

bool Imports(const Inspection& inspection, const std::string& domain) {
  return std::find(inspection.imports.begin(), inspection.imports.end(), domain) != inspection.imports.end();
}

bool IsRewritten(const Inspection& inspection) { return Imports(inspection, "kvshare"); }

bool HasEntryOfKvshare(const RunOptions& options) {
  return std::any_of(options.entries.begin(), options.entries.end(),
                     [](const auto& entry) { return entry.first.starts_with("kvshare."); });
}

bool IsNeeded(const Inspection& inspection, const RunOptions& options) {
  return options.via != Via::kAsNeeded || IsRewritten(inspection) || HasEntryOfKvshare(options);
}

// "1.24.4" and later have the execution provider.
bool HasProvider(const std::string& version) {
  constexpr int kFirstMinor = 24;
  int major = 0;
  int minor = 0;
  return std::sscanf(version.c_str(), "%d.%d", &major, &minor) == 2 && (major > 1 || minor >= kFirstMinor);
}

}  // namespace

KnownInputs KnownInputsOf(const Inspection& inspection, const std::map<std::string, int64_t>& named) {
  KnownInputs known{.caches = {}, .meanings = {}, .named = named};
  for (const AttentionLayer& layer : inspection.layers) {
    const CacheExtents extents{
        .heads = layer.kv_heads, .head_size = layer.head_size, .rows = layer.window_sized ? layer.window : 0};
    for (const std::string& past : {layer.past_key, layer.past_value})
      if (!past.empty()) known.caches[past] = extents;
    known.meanings[layer.seqlens_k] = {Role::kLast, "B"};
    known.meanings[layer.total_sequence_length] = {Role::kTotal, ""};
    known.meanings[layer.nonpad_kv_seqlen] = {Role::kTotal, "B"};
  }
  known.meanings.erase("");  // of layers without such an input
  return known;
}

Via ViaFor(const Inspection& inspection, const RunOptions& options, const std::string& version) {
  if (options.via != Via::kAsNeeded) return options.via;
  if (HasEntryOfKvshare(options)) return Via::kOps;
  if (HasProvider(version)) return Via::kEp;
  return IsRewritten(inspection) ? Via::kOps : Via::kDropIn;
}

Result<SessionSetup> SetupFor(const Inspection& inspection, const RunOptions& options) {
  SessionSetup setup{
      .entries = options.entries, .library = {}, .imports_microsoft = Imports(inspection, "com.microsoft")};
  if (options.via == Via::kDropIn) {
    for (const auto& [key, value] : options.entries)
      if (key == "kvshare.drop_in")
        return Status::InvalidInput(
            fmt::format("option 'via' = 'dropin' sets session entry {} itself, and it is given as '{}'; needs one of "
                        "the two",
                        key, value));
    const std::string mode = DropInFor(inspection);
    if (!mode.empty()) setup.entries.emplace_back("kvshare.drop_in", mode);
  }
  if (!IsNeeded(inspection, options)) return setup;
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(options.library, ignored))
    return Status::Refused(
        fmt::format("no library at '{}'; name libkvshare_ort.so with option 'library'", options.library));
  (options.via == Via::kEp ? setup.provider : setup.library) = std::filesystem::absolute(options.library).string();
  return setup;
}

}  // namespace kvshare::host
