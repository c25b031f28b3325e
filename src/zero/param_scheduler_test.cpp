#include "zero/param_scheduler.h"

#include <gtest/gtest.h>

namespace deepscale {
namespace {

ParamScheduler recorded(ParamScheduler::Options options = {}) {
  ParamScheduler scheduler({10, 20, 30, 40}, options);
  for (const int unit : {0, 1, 2, 3, 3, 2, 1, 0}) EXPECT_TRUE(scheduler.on_use(unit, 0).empty());
  scheduler.end_iteration();
  return scheduler;
}

TEST(ParamScheduler, TheSecondIterationPrefetchesInRecordedOrder) {
  auto scheduler = recorded({.prefetch_numel = 45});
  EXPECT_EQ(scheduler.on_use(0, 0), (std::vector<int>{1, 2}));
}

TEST(ParamScheduler, LiveElementsLimitThePrefetch) {
  auto scheduler = recorded({.prefetch_numel = 1000, .max_live_numel = 35});
  EXPECT_EQ(scheduler.on_use(0, 10), (std::vector<int>{1}));
}

TEST(ParamScheduler, ASkippedUnitIsToleratedAndAStrangeOrderForgotten) {
  auto scheduler = recorded();
  (void)scheduler.on_use(0, 0);
  (void)scheduler.on_use(2, 0);  // 1 was skipped
  EXPECT_TRUE(scheduler.knows_order());
  for (const int unit : {3, 3, 2, 1, 0}) (void)scheduler.on_use(unit, 0);
  (void)scheduler.on_use(3, 0);  // nothing left in the trace
  EXPECT_FALSE(scheduler.knows_order());
}

TEST(ParamScheduler, AUnitThatIsUsedAgainSoonIsKept) {
  auto scheduler = recorded({.max_reuse_distance_numel = 60});
  for (const int unit : {0, 1, 2, 3}) (void)scheduler.on_use(unit, 0);
  EXPECT_TRUE(scheduler.keep_after(3, 0));
  EXPECT_FALSE(scheduler.keep_after(0, 0));
}

}  // namespace
}  // namespace deepscale
