#pragma once

#include "kvshare/rewrite.h"

namespace kvshare::graph {

// "int8", "fp16": the spelling of options and reports.
std::string_view NameOf(CacheType type);

}  // namespace kvshare::graph
