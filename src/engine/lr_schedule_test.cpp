// Schedules against values computed by hand from their formulas.
#include "engine/lr_schedule.h"

#include <gtest/gtest.h>

#include <cmath>

#include "deepscale/error.h"

namespace deepscale {
namespace {

std::unique_ptr<LrSchedule> make(const std::string& type, const std::string& params,
                                 std::vector<ScheduledGroup> groups = {{0.1}}, bool has_betas = true) {
  std::vector<std::string> warnings;
  return LrSchedule::make(type, params, groups, has_betas, warnings);
}

double lr_at(LrSchedule& schedule, int64_t position, size_t group = 0) {
  schedule.set_last_batch_iteration(position);
  return schedule.rates().at(group).lr;
}

TEST(LrSchedule, WarmupRisesLinearlyAndStays) {
  const auto schedule = make(
      "WarmupLR", R"({"warmup_min_lr": 0.01, "warmup_max_lr": 0.05, "warmup_num_steps": 4, "warmup_type": "linear"})");
  EXPECT_DOUBLE_EQ(schedule->initial()->at(0).lr, 0.01);
  EXPECT_DOUBLE_EQ(lr_at(*schedule, 0), 0.01);
  EXPECT_DOUBLE_EQ(lr_at(*schedule, 1), 0.02);
  EXPECT_DOUBLE_EQ(lr_at(*schedule, 3), 0.04);
  EXPECT_DOUBLE_EQ(lr_at(*schedule, 4), 0.05);
  EXPECT_DOUBLE_EQ(lr_at(*schedule, 400), 0.05);
}

TEST(LrSchedule, WarmupByLogarithmEndsAtTheOptimizersOwnRate) {
  const auto schedule = make("WarmupLR", R"({"warmup_num_steps": 8})", {{0.2}, {0.4}});
  EXPECT_DOUBLE_EQ(lr_at(*schedule, 0), 0.0);
  EXPECT_NEAR(lr_at(*schedule, 1), 0.2 * std::log(2.0) / std::log(8.0), 1e-15);  // a third
  EXPECT_NEAR(lr_at(*schedule, 3, 1), 0.4 * 2.0 / 3.0, 1e-15);
  EXPECT_DOUBLE_EQ(lr_at(*schedule, 8, 1), 0.4);
}

TEST(LrSchedule, WarmupDecayFallsToZeroAtTheEnd) {
  const auto schedule =
      make("WarmupDecayLR", R"({"total_num_steps": 14, "warmup_max_lr": 0.5, "warmup_num_steps": 4})");
  EXPECT_DOUBLE_EQ(lr_at(*schedule, 4), 0.5);
  EXPECT_DOUBLE_EQ(lr_at(*schedule, 9), 0.25);
  EXPECT_DOUBLE_EQ(lr_at(*schedule, 14), 0.0);
  EXPECT_DOUBLE_EQ(lr_at(*schedule, 20), 0.0);
}

TEST(LrSchedule, CosineScalesEachGroupsOwnRate) {
  const auto schedule = make("WarmupCosineLR",
                             R"({"total_num_steps": 6, "warmup_num_steps": 2, "warmup_min_ratio": 0.5,
                                 "cos_min_ratio": 0.1, "warmup_type": "linear"})",
                             {{1.0}, {2.0}});
  EXPECT_DOUBLE_EQ(schedule->initial()->at(1).lr, 0.0);
  EXPECT_DOUBLE_EQ(lr_at(*schedule, 0), 0.5);
  EXPECT_DOUBLE_EQ(lr_at(*schedule, 1), 0.75);
  EXPECT_NEAR(lr_at(*schedule, 3, 1), 2.0 * (0.1 + 0.9 * 0.5), 1e-15);  // half way: cos(pi/2) = 0
  EXPECT_NEAR(lr_at(*schedule, 5), 0.1, 1e-15);
  EXPECT_NEAR(lr_at(*schedule, 50), 0.1, 1e-15);
}

TEST(LrSchedule, RangeTestGrowsContinuouslyOrInStairs) {
  const std::string common =
      R"({"lr_range_test_min_lr": 0.1, "lr_range_test_step_size": 4, "lr_range_test_step_rate": 2)";
  const auto smooth = make("LRRangeTest", common + "}");
  EXPECT_DOUBLE_EQ(smooth->initial()->at(0).lr, 0.1);
  EXPECT_DOUBLE_EQ(lr_at(*smooth, 1), 0.1 * 2.0);
  EXPECT_DOUBLE_EQ(lr_at(*smooth, 5), 0.1 * 4.0);
  const auto stairs = make("LRRangeTest", common + R"(, "lr_range_test_staircase": true})");
  EXPECT_DOUBLE_EQ(lr_at(*stairs, 1), 0.1);
  EXPECT_DOUBLE_EQ(lr_at(*stairs, 3), 0.1 * 3.0);
}

TEST(LrSchedule, OneCycleMovesMomentumAgainstTheRateAndThenDecays) {
  const auto schedule = make("OneCycle", R"({"cycle_min_lr": 0.1, "cycle_max_lr": 0.5, "cycle_first_step_size": 4,
      "cycle_second_step_size": 2, "decay_step_size": 5, "decay_lr_rate": 1, "decay_mom_rate": 0.5})");
  const GroupRate first = schedule->initial()->at(0);
  EXPECT_DOUBLE_EQ(first.lr, 0.1);
  EXPECT_DOUBLE_EQ(*first.momentum, 0.8);
  EXPECT_NEAR(lr_at(*schedule, 0), 0.2, 1e-15);
  EXPECT_NEAR(*schedule->rates().at(0).momentum, 0.875, 1e-15);
  EXPECT_NEAR(lr_at(*schedule, 3), 0.5, 1e-15);
  EXPECT_NEAR(*schedule->rates().at(0).momentum, 0.8, 1e-15);
  EXPECT_NEAR(lr_at(*schedule, 4), 0.3, 1e-15);
  EXPECT_NEAR(lr_at(*schedule, 10), 0.1 / 2.0, 1e-15);  // interval (10 - 6 + 1) / 5
  EXPECT_NEAR(*schedule->rates().at(0).momentum, 0.9 * 1.5, 1e-15);
}

TEST(LrSchedule, OneCycleStairsAndOptimizersWithoutBetas) {
  const auto schedule = make("OneCycle", R"({"cycle_min_lr": 0, "cycle_max_lr": 1, "cycle_first_step_size": 4,
      "cycle_first_stair_count": 2})",
                             {{0.1}}, /*has_betas=*/false);
  EXPECT_FALSE(schedule->initial()->at(0).momentum.has_value());
  EXPECT_DOUBLE_EQ(lr_at(*schedule, 0), 0.0);
  EXPECT_DOUBLE_EQ(lr_at(*schedule, 1), 0.5);
  EXPECT_DOUBLE_EQ(lr_at(*schedule, 2), 0.5);
  EXPECT_DOUBLE_EQ(lr_at(*schedule, 3), 1.0);
}

TEST(LrSchedule, AScheduleThatStartsFurtherOnChangesNothingBeforeItsFirstStep) {
  const auto schedule = make("WarmupLR", R"({"last_batch_iteration": 9})");
  EXPECT_FALSE(schedule->initial().has_value());
  schedule->advance();
  EXPECT_EQ(schedule->last_batch_iteration(), 10);
}

void expect_error(const std::string& type, const std::string& params, const std::string& part) {
  try {
    make(type, params, {{0.1}, {0.2}});
    ADD_FAILURE() << "no error for " << params;
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

TEST(LrSchedule, ErrorsNameTheParameter) {
  expect_error("WarmupLR", R"({"warmup_max_lr": [1, 2, 3]})", "has 3 values, but the optimizer has 2");
  expect_error("WarmupLR", R"({"warmup_num_steps": 1.5})", "scheduler.params.warmup_num_steps");
  expect_error("WarmupLR", R"({"warmup_num_step": 15})", "did you mean \"warmup_num_steps\"");
  expect_error("WarmupDecayLR", "{}", "total_num_steps");
  expect_error("LRRangeTest", R"({"lr_range_test_step_size": 0})", "positive");
  expect_error("OneCycle", R"({"cycle_min_lr": 1})", "cycle_max_lr");
  expect_error("StepLR", "{}", "WarmupCosineLR");
}

}  // namespace
}  // namespace deepscale
