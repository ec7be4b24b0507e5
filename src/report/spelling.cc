#include <regex>

#include "report/report.h"

namespace kvshare::report {

std::string SpellOptions(const std::string& text, const Spelling& spelling) {
  static const std::regex option(R"(option '(\w+)'(?: = '([^']*)')?)");
  std::string spelled;
  auto rest = text.begin();
  for (std::sregex_iterator it(text.begin(), text.end(), option), end; it != end; ++it) {
    spelled.append(rest, (*it)[0].first);
    spelled += spelling((*it)[1], (*it)[2]);
    rest = (*it)[0].second;
  }
  return spelled.append(rest, text.end());
}

}  // namespace kvshare::report
