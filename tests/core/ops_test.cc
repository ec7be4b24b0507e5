// docs/ops.md lists what the table of operators has, in its order, and nothing else.
#include "core/ops.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <string>
#include <vector>

namespace kvshare {
namespace {

using ::testing::ElementsAreArray;

std::string Trimmed(const std::string& text) {
  const size_t begin = text.find_first_not_of(' ');
  return begin == std::string::npos ? "" : text.substr(begin, text.find_last_not_of(' ') - begin + 1);
}

std::vector<std::string> SplitAt(const std::string& text, char at) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, at);) parts.push_back(Trimmed(part));
  return parts;
}

struct Row {
  std::string name;
  std::string number;  // "" in a table of attributes
  std::string type;
};

// The rows of the page's tables under "## <section>" whose header's column `title` is named so; "1, 2 | key, value" is
// two rows.
std::vector<Row> Table(const std::string& section, const std::string& title) {
  std::ifstream page(KVSHARE_OPS_PAGE);
  std::vector<Row> rows;
  size_t column = 0;  // of the names, in the table at hand; 0: another table
  bool header = true;
  bool inside = false;
  for (std::string line; std::getline(page, line);) {
    if (line.starts_with("## ")) inside = line == "## " + section;
    if (!line.starts_with("|")) header = true;
    if (!inside || !line.starts_with("|") || line.starts_with("|---")) continue;
    const auto cells = SplitAt(line, '|');  // the first is empty
    if (header) {
      column = cells[1] == title ? 1 : cells[2] == title ? 2 : 0;
      header = false;
    } else if (column > 0) {
      const auto names = SplitAt(cells[column], ',');
      const auto numbers = SplitAt(cells[1], ',');
      const auto types = SplitAt(cells.back(), ',');
      for (size_t i = 0; i < names.size(); ++i)
        rows.push_back(
            {names[i], column == 2 ? numbers.at(i) : "", types.size() == names.size() ? types[i] : cells.back()});
    }
  }
  return rows;
}

std::string TypeText(const Operator& op, const Slot& slot) {
  const bool gqa = std::string_view(op.name) == "GroupQueryAttention";
  switch (slot.type) {
    case SlotType::kT: return gqa ? "T" : "T1";
    case SlotType::kCache: return gqa ? "cache" : "T2";
    case SlotType::kF32: return "fp32";
    case SlotType::kI32: return "int32";
    case SlotType::kI64: return "int64";
    case SlotType::kAny: return "";
  }
  return "?";
}

void ExpectSlots(const Operator& op, const std::string& title, std::span<const Slot> slots) {
  auto rows = Table(op.name, title);
  ASSERT_GE(rows.size(), slots.size()) << op.name;
  for (size_t i = 0; i < slots.size(); ++i) {
    EXPECT_EQ(rows[i].name, slots[i].name);
    EXPECT_EQ(rows[i].number, std::to_string(i)) << slots[i].name;
    if (slots[i].type != SlotType::kAny) {
      EXPECT_EQ(rows[i].type, TypeText(op, slots[i])) << slots[i].name;
    }
  }
  for (size_t i = slots.size(); i < rows.size(); ++i)
    EXPECT_EQ(rows[i].name, "key_mask") << "an input that ai.onnx's Attention lacks";
}

TEST(OpsPage, ListsInputsAndOutputsOfEachOperator) {
  for (const Operator& op : Operators()) {
    ExpectSlots(op, "input", op.inputs);
    ExpectSlots(op, "output", op.outputs);
  }
  EXPECT_EQ(Table("Attention", "input").size(), FindOperator("kvshare", "Attention")->inputs.size());
}

TEST(OpsPage, ListsTheAttributesOfEachOperator) {
  for (const Operator& op : Operators()) {
    std::vector<std::string> listed;
    for (const Row& row : Table(op.name, "attribute")) listed.push_back(row.name);
    std::vector<std::string> known;
    for (const Attribute& attribute : op.attributes) known.emplace_back(attribute.name);
    if (listed.size() > known.size()) {
      EXPECT_EQ(listed.back(), "window_cache_rows") << "an attribute that com.microsoft's GroupQueryAttention lacks";
      listed.pop_back();
    }
    EXPECT_THAT(listed, ElementsAreArray(known)) << op.domain << " " << op.name;
  }
  EXPECT_STREQ(FindOperator("kvshare", "GroupQueryAttention")->attributes.back().name, "window_cache_rows");
}

TEST(Operators, AreFoundByDomainAndName) {
  EXPECT_EQ(FindOperator("ai.onnx", "Attention"), FindOperator("", "Attention"));
  EXPECT_NE(FindOperator("", "Attention"), nullptr);
  EXPECT_EQ(FindOperator("com.microsoft", "Attention"), nullptr) << "another operator of the same name";
  EXPECT_EQ(FindOperator("", "GroupQueryAttention"), nullptr);
}

}  // namespace
}  // namespace kvshare
