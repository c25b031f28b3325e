#include <gtest/gtest.h>

#include <array>
#include <cstdlib>

#include "base/dtype.h"
#include "base/environment.h"
#include "base/error.h"
#include "base/log.h"

namespace deepscale {
namespace {

TEST(Error, CheckThrowsTheNamedClassWithTheFormattedMessage) {
  try {
    DS_CHECK_AS(ConfigError, 1 > 2, "zero_optimization.stage must be 0..3, got {}", 7);
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_STREQ(error.what(), "zero_optimization.stage must be 0..3, got 7");
  }
}

TEST(Error, NearestNameFindsTyposAndRefusesStrangers) {
  const std::array<std::string_view, 3> names = {"train_batch_size", "optimizer", "scheduler"};
  EXPECT_EQ(nearest_name("train_batchsize", names), "train_batch_size");
  EXPECT_EQ(nearest_name("Optimiser", names), "optimizer");
  EXPECT_EQ(nearest_name("zzz", names), "");
}

TEST(Environment, IntegersAreCheckedAndEmptyMeansUnset) {
  // putenv, because every system has it; it keeps the string.
  static char number[] = "DEEPSCALE_TEST_VALUE=12";
  static char no_number[] = "DEEPSCALE_TEST_VALUE=12x";
  static char nothing[] = "DEEPSCALE_TEST_VALUE=";
  putenv(number);
  EXPECT_EQ(environment_int("DEEPSCALE_TEST_VALUE"), 12);
  putenv(no_number);
  EXPECT_THROW(environment_int("DEEPSCALE_TEST_VALUE"), ConfigError);
  putenv(nothing);
  EXPECT_FALSE(environment("DEEPSCALE_TEST_VALUE").has_value());
}

TEST(Log, LevelsParseAndFilter) {
  const Logger logger(3);
  logger.set_level(Logger::parse_level("error"));
  EXPECT_FALSE(logger.enabled(LogLevel::kWarning));
  EXPECT_TRUE(logger.enabled(LogLevel::kError));
  EXPECT_THROW(Logger::parse_level("loud"), ConfigError);
}

TEST(DType, SizesAndNames) {
  EXPECT_EQ(size_of(DType::kBFloat16), 2);
  EXPECT_EQ(size_of(DType::kBool), 1);
  EXPECT_EQ(name_of(DType::kInt64), "int64");
}

}  // namespace
}  // namespace deepscale
