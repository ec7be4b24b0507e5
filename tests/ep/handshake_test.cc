#include "ep/handshake.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kvshare::ep {
namespace {

using testing::HasSubstr;

TEST(Handshake, AReaderNeedsItsKeyMaskAndItsCachesMadeHere) {
  Handshake handshake;
  const Plan plan = {.key_mask = "mask", .unfolded = {"k", "v"}, .kv_heads = 1};
  for (const char* missing : {"mask", "k", "v"}) {
    EXPECT_THAT(handshake.CheckMade(plan).message(), HasSubstr(missing));
    handshake.Made(missing);
  }
  EXPECT_TRUE(handshake.CheckMade(plan).ok());
  EXPECT_TRUE(Handshake().CheckMade({}).ok());
}

TEST(Handshake, AMakerNeedsEveryReaderHere) {
  Handshake handshake;
  handshake.Expect({"out1", "out2"});
  handshake.Reads("out1");
  const Status status = handshake.CheckReaders();
  EXPECT_EQ(status.code(), StatusCode::kInternal);
  EXPECT_EQ(status.message(),
            "attention 'out2' was planned to run in the execution provider, whose values it reads, and does not");
  handshake.Reads("out2");
  EXPECT_TRUE(handshake.CheckReaders().ok());
}

TEST(CheckedOnce, AsksAgainUntilItHolds) {
  CheckedOnce checked;
  int asked = 0;
  const auto ask = [&] { return ++asked < 2 ? Status::Internal("not yet") : Status(); };
  EXPECT_FALSE(checked(ask).ok());
  EXPECT_TRUE(checked(ask).ok());
  EXPECT_TRUE(checked(ask).ok());
  EXPECT_EQ(asked, 2);
}

}  // namespace
}  // namespace kvshare::ep
