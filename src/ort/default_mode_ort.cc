#include "ort/session_config.h"

namespace kvshare::ort {

bool DropInByDefault() { return false; }

}  // namespace kvshare::ort
