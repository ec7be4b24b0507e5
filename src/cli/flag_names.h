// How the command line calls the options that the library's messages name.
#pragma once

#include <string>
#include <string_view>

namespace kvshare::cli {

// `text` with each {option} of the library's as the flag that sets it: {min_ort} becomes --min-ort. Other braces stay.
std::string WithFlags(std::string_view text);

}  // namespace kvshare::cli
