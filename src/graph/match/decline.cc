#include "graph/match/decline.h"

namespace kvshare::graph {

const char* TextOf(DeclineCode code) {
  switch (code) {
#define KVSHARE_DECLINE_CODE(name, text) \
  case DeclineCode::k##name: return text;
#include "graph/match/decline_codes.inc"
#undef KVSHARE_DECLINE_CODE
    case DeclineCode::kNone: break;
  }
  return "";
}

}  // namespace kvshare::graph
