#include <gtest/gtest.h>
#include <sys/resource.h>

#include "platform/process_limits.h"

namespace deepscale {
namespace {

TEST(ProcessLimitsTest, AreThoseThatAreSetWithWhatIsUsed) {
  rlimit before = {};
  ASSERT_EQ(getrlimit(RLIMIT_AS, &before), 0);
  const int64_t wanted = int64_t{1} << 46;  // more than any test takes, so that nothing else notices
  rlimit low = before;
  low.rlim_cur = static_cast<rlim_t>(wanted);
  if (before.rlim_max != RLIM_INFINITY && before.rlim_max < low.rlim_cur) GTEST_SKIP() << "a lower hard limit is set";
  ASSERT_EQ(setrlimit(RLIMIT_AS, &low), 0);
  const std::vector<ProcessLimit> found = process_limits();
  ASSERT_EQ(setrlimit(RLIMIT_AS, &before), 0);
  ASSERT_FALSE(found.empty());
  EXPECT_EQ(found[0].name, "RLIMIT_AS");
  EXPECT_EQ(found[0].limit_bytes, wanted);
  EXPECT_TRUE(found[0].counts_shared);
  EXPECT_GT(found[0].used_bytes, 1 << 20);
  EXPECT_LT(found[0].used_bytes, wanted);
}

}  // namespace
}  // namespace deepscale
