// What the library returned, as text for a terminal and as JSON for programs: one place for every face.
//
// Texts name options in braces ("needs {extent} D=N"), as the library's messages do; each face fills in its own names.
#pragma once

#include <string>

#include "kvshare/doctor.h"
#include "kvshare/rewrite.h"
#include "kvshare/verify.h"

namespace kvshare::report {

std::string ToText(const Inspection& inspection);
std::string ToJson(const Inspection& inspection);

std::string ToText(const RewriteReport& report);
std::string ToJson(const RewriteReport& report);

std::string ToText(const Verification& verification);
std::string ToJson(const Verification& verification);

std::string ToText(const Diagnosis& diagnosis);
std::string ToJson(const Diagnosis& diagnosis);

}  // namespace kvshare::report
