#include "graph/forms/form.h"

namespace kvshare::graph {

const std::vector<Form>& AllForms() {
  static const std::vector<Form> forms = {
      {"external-gqa", ReadExternalGqa},
      {"empty-key-gqa", ReadEmptyKeyGqa},
      {"borrowing-attention", ReadBorrowingAttention},
      {"equal-keys-attention", ReadEqualKeysAttention},
      {"own-gqa", ReadOwnGqa},
      {"own-attention", ReadOwnAttention},
  };
  return forms;
}

}  // namespace kvshare::graph
