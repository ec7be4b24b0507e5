// What the library returned, as text for a terminal and as JSON for programs: one place for every face.
#pragma once

#include <string>

#include "kvshare/rewrite.h"

namespace kvshare::report {

std::string ToText(const Inspection& inspection);
std::string ToJson(const Inspection& inspection);

std::string ToText(const RewriteReport& report);
std::string ToJson(const RewriteReport& report);

}  // namespace kvshare::report
