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

struct Recorded {
  std::string type, params;
  std::vector<double> rates;      ///< of the second group: at construction, then after each step
  std::vector<double> momentums;  ///< empty: not cycled
};

/// Printed by the classes of python/deepspeed/runtime/lr_schedules.py for torch.optim.AdamW with rates 0.1 and 0.04.
const std::vector<Recorded> kRecorded = {
    {"WarmupLR",
     R"({"warmup_min_lr": 0.001, "warmup_max_lr": [0.05, 0.02], "warmup_num_steps": 7})",
     {0.001, 0.001, 0.007767936555052421, 0.011726925647018015, 0.014535873110104843, 0.016714662031591408,
      0.018494862202070434, 0.02, 0.02, 0.02, 0.02, 0.02, 0.02, 0.02, 0.02},
     {}},
    {"WarmupDecayLR",
     R"({"total_num_steps": 20, "warmup_max_lr": 0.03, "warmup_num_steps": 5, "warmup_type": "linear"})",
     {0.0, 0.0, 0.006, 0.012, 0.018, 0.024, 0.03, 0.028, 0.026, 0.024, 0.022, 0.019999999999999997, 0.018, 0.016,
      0.014},
     {}},
    {"WarmupCosineLR",
     R"({"total_num_steps": 18, "warmup_num_steps": 4, "warmup_min_ratio": 0.2, "cos_min_ratio": 0.05})",
     {0.0, 0.008, 0.024000000000000004, 0.033359400011538504, 0.04, 0.039523630331454646, 0.038118408490145965,
      0.03585479816689257, 0.03284630623531594, 0.029243791043233602, 0.025227897745169973, 0.021, 0.016772102254830026,
      0.012756208956766395, 0.009153693764684064},
     {}},
    {"LRRangeTest",
     R"({"lr_range_test_min_lr": 0.002, "lr_range_test_step_size": 3, "lr_range_test_step_rate": 0.7})",
     {0.002, 0.002466666666666667, 0.0029333333333333334, 0.0034, 0.0038666666666666663, 0.004333333333333334, 0.0048,
      0.005266666666666667, 0.0057333333333333325, 0.0062, 0.006666666666666667, 0.007133333333333333, 0.0076,
      0.008066666666666666, 0.008533333333333334},
     {}},
    {"OneCycle",
     R"({"cycle_min_lr": 0.01, "cycle_max_lr": 0.09, "cycle_first_step_size": 5, "cycle_second_step_size": 4, "cycle_first_stair_count": 3, "decay_step_size": 2, "decay_lr_rate": 0.3, "decay_mom_rate": 0.1})",
     {0.01, 0.01, 0.03666666666666667, 0.03666666666666667, 0.06333333333333332, 0.09, 0.06333333333333332,
      0.03666666666666667, 0.01, 0.01, 0.008695652173913044, 0.007692307692307692, 0.006896551724137932,
      0.0062499999999999995, 0.005714285714285714},
     {0.8, 0.9, 0.8666666666666667, 0.8666666666666667, 0.8333333333333334, 0.8, 0.8333333333333334, 0.8666666666666667,
      0.9, 0.9, 0.9450000000000001, 0.9900000000000001, 1.035, 1.08, 1.125}},
};

TEST(LrSchedule, AgreesWithThePythonClasses) {
  for (const auto& recorded : kRecorded) {
    SCOPED_TRACE(recorded.type);
    const auto schedule = make(recorded.type, recorded.params, {{0.1}, {0.04}});
    for (size_t step = 0; step < recorded.rates.size(); ++step) {
      if (step > 0) schedule->advance();
      const GroupRate rate = step == 0 ? schedule->initial()->at(1) : schedule->rates().at(1);
      EXPECT_DOUBLE_EQ(rate.lr, recorded.rates[step]) << step;
      ASSERT_EQ(rate.momentum.has_value(), !recorded.momentums.empty());
      EXPECT_DOUBLE_EQ(rate.momentum.value_or(0), recorded.momentums.empty() ? 0 : recorded.momentums[step]) << step;
    }
  }
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
