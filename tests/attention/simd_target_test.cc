// The SIMD targets that the kernels are built for. One that this CPU lacks is skipped: ctest's summary names it among
// the tests that did not run, and no test of a kernel has run on it.
#include <gtest/gtest.h>

#include "kvshare/attend.h"
#include "tests/support/every_target.h"

namespace kvshare {
namespace {

using BuiltTarget = testing::EveryTarget;

TEST_P(BuiltTarget, RunsWhereItIsChosen) { EXPECT_STREQ(SimdTarget(), hwy::TargetName(GetParam())); }

INSTANTIATE_TEST_SUITE_P(Simd, BuiltTarget, ::testing::ValuesIn(testing::TargetsIn(HWY_TARGETS)),
                         testing::NameOfTarget);

}  // namespace
}  // namespace kvshare
