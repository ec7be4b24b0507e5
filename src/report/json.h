// JSON of names that a model chose.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace kvshare::report {

using Json = nlohmann::ordered_json;

// A model's names are bytes: what is no UTF-8 in them becomes U+FFFD.
inline std::string Dump(const Json& json) { return json.dump(2, ' ', false, Json::error_handler_t::replace); }

}  // namespace kvshare::report
