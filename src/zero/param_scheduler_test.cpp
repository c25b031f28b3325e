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

/// Uses of passes that nobody announces, until a whole pass was followed by the unit that comes next: how many passes
/// that takes.
int passes_until_known(ParamScheduler& scheduler, const std::vector<int>& pass) {
  for (int passes = 0; passes < 20; ++passes) {
    bool known = true;
    for (size_t i = 0; i < pass.size(); ++i) {
      const int next = pass[(i + 1) % pass.size()];
      const std::vector<int> ahead = use(scheduler, pass[i]);
      known = known && (next == pass[i] || (!ahead.empty() && ahead.front() == next));
    }
    if (known) return passes;
  }
  return 20;
}

TEST(ParamScheduler, OnePassTeachesTheOrderOfPassesThatNobodyAnnounces) {
  const std::vector<std::vector<int>> orders = {
      {0, 1, 2, 3},        // untied
      {0, 1, 2, 0},        // a tied head
      {0, 1, 0, 2},        // shared in the middle
      {0, 1, 2, 0, 2, 3},  //
      {0, 0, 1, 1},        // twice in a row
      {0},
  };
  for (const std::vector<int>& pass : orders) {
    ParamScheduler scheduler({10, 20, 30, 40}, {.prefetch_numel = 5, .cyclic = true, .announced = false});
    EXPECT_EQ(passes_until_known(scheduler, pass), pass.size() == 1 ? 0 : 1) << ::testing::PrintToString(pass);
    EXPECT_EQ(passes_until_known(scheduler, pass), 0);
  }
}

TEST(ParamScheduler, AnOrderThatLookedLikeAShorterOneIsLearntInTheNextPass) {
  ParamScheduler scheduler({10, 20, 30, 40}, {.prefetch_numel = 5, .cyclic = true, .announced = false});
  EXPECT_LE(passes_until_known(scheduler, {0, 1, 0, 1, 0, 2}), 2);
}

TEST(ParamScheduler, UnannouncedPassesMayChangeBeCutOffAndSkip) {
  ParamScheduler scheduler({10, 20, 30, 40}, {.prefetch_numel = 5, .cyclic = true, .announced = false});
  EXPECT_EQ(passes_until_known(scheduler, {0, 1, 2, 3}), 1);
  EXPECT_EQ(passes_until_known(scheduler, {0, 1, 2, 3}), 0);
  (void)use(scheduler, 0);
  (void)use(scheduler, 1);
  EXPECT_TRUE(scheduler.begins_with(0));  // cut off
  EXPECT_EQ(use(scheduler, 0), (std::vector<int>{1}));
  EXPECT_EQ(use(scheduler, 2), (std::vector<int>{3}));  // 1 was skipped
  (void)use(scheduler, 3);
  EXPECT_LE(passes_until_known(scheduler, {3, 2, 1, 0}), 2);
}

TEST(ParamScheduler, ATiedHeadBeginsNoPassOnceTheOrderIsKnown) {
  ParamScheduler scheduler({10, 20, 30, 40}, {.prefetch_numel = 5, .cyclic = true, .announced = false});
  for (int pass = 0; pass < 4; ++pass) {
    for (const int unit : {0, 1, 2}) (void)use(scheduler, unit);
    EXPECT_EQ(scheduler.begins_with(0), pass == 0);
    (void)use(scheduler, 0);
    EXPECT_TRUE(scheduler.begins_with(0));
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
