// What the graph tool knows of a decoder's caches, for the host to run it.
#pragma once

#include "host/decoder.h"
#include "kvshare/rewrite.h"

namespace kvshare::cli {

host::Caches CachesOf(const Inspection& inspection);

}  // namespace kvshare::cli
