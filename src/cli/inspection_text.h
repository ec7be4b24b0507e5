// What the graph tool returned, as text and as JSON.
#pragma once

#include <string>

#include "kvshare/rewrite.h"
#include "kvshare/status.h"

namespace kvshare::cli {

std::string ToText(const Inspection& inspection);
std::string ToJson(const Inspection& inspection);
std::string ToText(const RewriteReport& report);

}  // namespace kvshare::cli
