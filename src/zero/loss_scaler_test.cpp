#include "zero/loss_scaler.h"

#include <gtest/gtest.h>

#include "deepscale/error.h"

namespace deepscale {
namespace {

LossScaler::Options dynamic_options() {
  LossScaler::Options options;
  options.dynamic = true;
  options.initial_scale = 1024;
  options.window = 3;
  return options;
}

TEST(LossScaler, TheFirstOverflowSpendsHysteresisOnly) {
  LossScaler scaler(dynamic_options());
  scaler.update(true);
  EXPECT_EQ(scaler.scale(), 1024);
  scaler.update(true);
  EXPECT_EQ(scaler.scale(), 512);
}

TEST(LossScaler, ACleanWindowDoublesTheScale) {
  LossScaler scaler(dynamic_options());
  for (int i = 0; i < 3; ++i) scaler.update(false);
  EXPECT_EQ(scaler.scale(), 1024);
  scaler.update(false);  // iteration 3, 3 stable steps behind it
  EXPECT_EQ(scaler.scale(), 2048);
}

TEST(LossScaler, OverflowAtTheMinimumIsAnErrorThatNamesTheSetting) {
  auto options = dynamic_options();
  options.hysteresis = 1;
  options.initial_scale = 2;
  LossScaler scaler(options);
  scaler.update(true);
  EXPECT_EQ(scaler.scale(), 1);
  try {
    scaler.update(true);
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("fp16.min_loss_scale"), std::string::npos);
  }
}

TEST(LossScaler, StaticScaleNeverMoves) {
  LossScaler::Options options;
  options.initial_scale = 128;
  LossScaler scaler(options);
  for (int i = 0; i < 5; ++i) scaler.update(i % 2 == 0);
  EXPECT_EQ(scaler.scale(), 128);
}

TEST(LossScaler, ConsecutiveHysteresisRefillsOnEveryCleanStep) {
  auto options = dynamic_options();
  options.consecutive_hysteresis = true;
  LossScaler scaler(options);
  scaler.update(true);
  scaler.update(false);
  scaler.update(true);
  EXPECT_EQ(scaler.scale(), 1024);
}

}  // namespace
}  // namespace deepscale
