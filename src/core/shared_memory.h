// May the tensors of an append lie in each other's memory? Part of CheckAppend.
#pragma once

#include <string>
#include <string_view>

#include "kvshare/call.h"

namespace kvshare {

// What error messages call the tensors of an append.
struct AppendNames {
  std::string past = "past";
  std::string fresh = "key or value";
  std::string present = "present";
};

// One append writes its present while it reads its past and its new rows. The past may lie where the present does, row
// by row, and is then appended in place; nothing else may be shared.
Status CheckOwnMemory(const AppendCall& call, const AppendNames& names, std::string_view where);

// A call that is run with `other`: neither may write what the other reads or writes.
Status CheckApart(const AppendCall& call, const AppendNames& names, const AppendCall& other,
                  const AppendNames& other_names, std::string_view where);

}  // namespace kvshare
