#include "zero/param_scheduler.h"

#include <gtest/gtest.h>

namespace deepscale {
namespace {

std::vector<int> use(ParamScheduler& scheduler, int unit, int64_t live_numel = 0) {
  return scheduler.on_use(unit, live_numel, [](int) { return false; });
}

ParamScheduler recorded(ParamScheduler::Options options = {}) {
  ParamScheduler scheduler({10, 20, 30, 40}, options);
  for (const int unit : {0, 1, 2, 3, 3, 2, 1, 0}) EXPECT_TRUE(use(scheduler, unit).empty());
  scheduler.end_iteration();
  return scheduler;
}

TEST(ParamScheduler, TheSecondIterationPrefetchesInRecordedOrder) {
  auto scheduler = recorded({.prefetch_numel = 45});
  EXPECT_EQ(use(scheduler, 0), (std::vector<int>{1, 2}));
}

TEST(ParamScheduler, LiveElementsLimitThePrefetch) {
  auto scheduler = recorded({.prefetch_numel = 1000, .max_live_numel = 35});
  EXPECT_EQ(use(scheduler, 0, 10), (std::vector<int>{1}));
}

TEST(ParamScheduler, WhatIsLiveAlreadyIsNotCountedTwice) {
  auto scheduler = recorded({.prefetch_numel = 1000, .max_live_numel = 60});
  EXPECT_EQ(scheduler.on_use(0, 30, [](int unit) { return unit == 1; }), (std::vector<int>{2}));
}

TEST(ParamScheduler, ASkippedUnitIsTolerated) {
  auto scheduler = recorded({.prefetch_numel = 45});
  (void)use(scheduler, 0);
  EXPECT_EQ(use(scheduler, 2), (std::vector<int>{3, 1}));  // 1 was skipped
}

TEST(ParamScheduler, AStrangeOrderIsForgottenAndTheNextWholeIterationRecorded) {
  auto scheduler = recorded({.prefetch_numel = 45});
  for (const int unit : {0, 1, 2, 3, 3, 2, 1, 0}) (void)use(scheduler, unit);
  EXPECT_TRUE(use(scheduler, 3).empty());  // nothing left in the trace
  EXPECT_TRUE(use(scheduler, 2).empty());
  scheduler.end_iteration();
  for (const int unit : {1, 3, 2, 0}) EXPECT_TRUE(use(scheduler, unit).empty());
  scheduler.end_iteration();
  EXPECT_EQ(use(scheduler, 1), (std::vector<int>{3, 2}));
}

TEST(ParamScheduler, PassesWhoseFirstUnitIsAlsoTheLastAreLearntAsACycle) {
  ParamScheduler scheduler({10, 20, 30, 40}, {.prefetch_numel = 15});
  std::vector<int> ahead;
  for (int pass = 0; pass < 6; ++pass) {
    for (const int unit : {0, 1, 2, 0}) {
      if (scheduler.began_with(unit)) scheduler.end_iteration();
      ahead = use(scheduler, unit);
      if (pass < 5 || unit != 1) continue;
      EXPECT_EQ(ahead, (std::vector<int>{2}));
    }
  }
}

TEST(ParamScheduler, TheNextUnitsMayAlwaysBeAhead) {
  auto scheduler = recorded({.prefetch_numel = 1, .max_live_numel = 5, .min_ahead = 2});
  EXPECT_EQ(use(scheduler, 0, 10), (std::vector<int>{1, 2}));
}

TEST(ParamScheduler, ACycleGoesOnWithItsBeginning) {
  auto scheduler = recorded({.prefetch_numel = 45, .cyclic = true});
  for (const int unit : {0, 1, 2, 3, 3, 2}) (void)use(scheduler, unit);
  EXPECT_EQ(use(scheduler, 1), (std::vector<int>{0, 2, 3}));
}

TEST(ParamScheduler, UnitsThatCostNothingAreNeitherPrefetchedNorInTheWay) {
  auto scheduler = recorded({.prefetch_numel = 45});
  scheduler.set_numel(1, 0);
  EXPECT_EQ(use(scheduler, 0), (std::vector<int>{2, 3}));
}

TEST(ParamScheduler, AUnitThatIsUsedAgainSoonIsKept) {
  auto scheduler = recorded({.max_reuse_distance_numel = 60});
  for (const int unit : {0, 1, 2, 3}) (void)use(scheduler, unit);
  EXPECT_TRUE(scheduler.keep_after(3, 0));
  EXPECT_FALSE(scheduler.keep_after(0, 0));
}

}  // namespace
}  // namespace deepscale
