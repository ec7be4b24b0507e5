#include "ep/handshake.h"

#include <fmt/format.h>

namespace kvshare::ep {

Status Handshake::CheckMade(const Plan& plan) const {
  for (const std::string& value : {plan.key_mask, plan.unfolded[0], plan.unfolded[1]})
    if (!value.empty() && !made_.contains(value))
      return Status::Internal(fmt::format("'{}' was planned to be made by the execution provider, and is not", value));
  return {};
}

Status Handshake::CheckReaders() const {
  for (const std::string& reader : expected_)
    if (!readers_.contains(reader))
      return Status::Internal(fmt::format(
          "attention '{}' was planned to run in the execution provider, whose values it reads, and does not", reader));
  return {};
}

}  // namespace kvshare::ep
