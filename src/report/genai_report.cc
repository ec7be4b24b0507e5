#include <fmt/format.h>

#include "report/json.h"
#include "report/report.h"

namespace kvshare::report {

std::string ToText(const GenaiReport& report, const std::string& library) {
  std::string text;
  for (const std::string& change : report.changes) text += OneLine(change) + "\n";
  text += fmt::format("{}: {}\n", report.changes.empty() ? "nothing to change" : "written", report.config);
  if (!report.backup.empty()) text += fmt::format("backup:  {} (--undo puts it back)\n", report.backup);
  // onnxruntime-genai knows only the providers that were registered before.
  if (!library.empty())
    text += fmt::format(
        "The program registers the library before it loads the model, or onnxruntime-genai says \"Unknown provider "
        "name\":\n  onnxruntime_genai.register_execution_provider_library(\"kvshare\", \"{}\")\n",
        library);
  return text;
}

std::string ToJson(const GenaiReport& report, const std::string& library) {
  const Json all = {
      {"config", report.config}, {"backup", report.backup}, {"changes", report.changes}, {"library", library}};
  return Dump(all);
}

}  // namespace kvshare::report
