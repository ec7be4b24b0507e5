#include "ort/session_config.h"

namespace kvshare::ort {

bool DropInByDefault() { return true; }

}  // namespace kvshare::ort
