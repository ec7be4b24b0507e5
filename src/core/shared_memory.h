// May the tensors of an append lie in each other's memory? Part of CheckAppend.
#pragma once

#include <string>
#include <string_view>

#include "kvshare/call.h"

namespace kvshare {

// What error messages call the tensors of an append. Every call brings one, so that it holds no text of its own.
struct AppendNames {
  std::string_view what = {};       // "key" or "value"; "": not known
  std::string_view cache = "past";  // what the past is: "past" or "external"

  std::string past() const { return Joined(cache); }
  std::string fresh() const { return what.empty() ? "key or value" : std::string(what); }
  std::string present() const { return Joined("present"); }

 private:
  std::string Joined(std::string_view of) const {
    std::string name(of);
    if (!what.empty()) name.append("_").append(what);
    return name;
  }
};

// One append writes its present while it reads its past and its new rows. The past may lie where the present does, row
// by row, and is then appended in place; nothing else may be shared.
Status CheckOwnMemory(const AppendCall& call, const AppendNames& names, std::string_view where);

// A call that is run with `other`: neither may write what the other reads or writes.
Status CheckApart(const AppendCall& call, const AppendNames& names, const AppendCall& other,
                  const AppendNames& other_names, std::string_view where);

}  // namespace kvshare
