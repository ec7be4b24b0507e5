// What the library returned, as text for a terminal and as JSON for programs: one place for every face.
//
// The library's texts name options ("option 'extent' = 'D=N'"); each face spells them its own way with SpellOptions.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "kvshare/doctor.h"
#include "kvshare/genai.h"
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

// `library`: what a program has to register for onnxruntime-genai; "" where it need not, as after an undo.
std::string ToText(const GenaiReport& report, const std::string& library);
std::string ToJson(const GenaiReport& report, const std::string& library);

// `text` for one line of a terminal: line breaks and other control characters, and what is no UTF-8, as \n, \x1b, \xff.
// Names and paths are whatever a model's author or its user chose.
std::string OneLine(std::string_view text);

// How a face writes an option: its name, and its value or "" where the text gives none.
using Spelling = std::function<std::string(const std::string& name, const std::string& value)>;

// `text` with each "option 'NAME'" and "option 'NAME' = 'VALUE'" in the face's spelling.
std::string SpellOptions(const std::string& text, const Spelling& spelling);

}  // namespace kvshare::report
