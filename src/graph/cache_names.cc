#include "graph/cache_names.h"

#include <string_view>

namespace kvshare::graph {

std::vector<std::string> PresentNames(const std::string& past) {
  std::vector<std::string> names;
  for (const std::string_view prefix : {"past_key_values", "past"})
    if (past.starts_with(prefix)) {
      names.push_back("present" + past.substr(prefix.size()));
      break;
    }
  names.push_back(past + "_RetainedState");
  return names;
}

}  // namespace kvshare::graph
