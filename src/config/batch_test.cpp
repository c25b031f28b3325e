#include "config/test_support.h"

namespace deepscale {
namespace {

struct Triple {
  int64_t batch, micro, accumulation;
  bool operator==(const Triple&) const = default;
};

Triple resolved(std::string_view text, int ranks) {
  const Config config = Config::parse(text, ranks);
  return {config->train_batch_size.value(), config->train_micro_batch_size_per_gpu.value(),
          config->gradient_accumulation_steps.value()};
}

TEST(Batch, WhatIsMissingIsFilledIn) {
  EXPECT_EQ(resolved(R"({"train_batch_size": 24, "train_micro_batch_size_per_gpu": 4})", 2), (Triple{24, 4, 3}));
  EXPECT_EQ(resolved(R"({"train_batch_size": 24, "gradient_accumulation_steps": 3})", 2), (Triple{24, 4, 3}));
  EXPECT_EQ(resolved(R"({"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 3})", 2),
            (Triple{24, 4, 3}));
  EXPECT_EQ(resolved(R"({"train_batch_size": 24})", 2), (Triple{24, 12, 1}));
  EXPECT_EQ(resolved(R"({"train_micro_batch_size_per_gpu": 4})", 2), (Triple{8, 4, 1}));
  EXPECT_EQ(
      resolved(R"({"train_batch_size": 24, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 3})", 2),
      (Triple{24, 4, 3}));
}

TEST(Batch, FloatsCountAsIntegers) {
  EXPECT_EQ(resolved(R"({"train_batch_size": 24.0, "gradient_accumulation_steps": "auto"})", 2), (Triple{24, 12, 1}));
}

TEST(Batch, ThreeValuesThatDisagreeAreNamedInOneSentence) {
  const std::string error = error_of_text(
      R"({"train_batch_size": 24, "train_micro_batch_size_per_gpu": 5, "gradient_accumulation_steps": 3})", 2);
  EXPECT_CONTAINS(error,
                  "train_batch_size: is not equal to train_micro_batch_size_per_gpu * gradient_accumulation_steps");
  EXPECT_CONTAINS(error, "24 != 5 * 3 * 2");
}

TEST(Batch, ABatchThatTheRanksDoNotDivideIsAnError) {
  EXPECT_CONTAINS(error_of_text(R"({"train_batch_size": 8})", 3), "8 != 2 * 1 * 3");
}

TEST(Batch, AQuantityThatWouldBeZeroIsAnError) {
  EXPECT_CONTAINS(error_of_text(R"({"train_batch_size": 2})", 3), "train_micro_batch_size_per_gpu: would be 0");
  EXPECT_CONTAINS(error_of_text(R"({"train_batch_size": 4, "train_micro_batch_size_per_gpu": 3})", 2),
                  "gradient_accumulation_steps: would be 0");
  for (const char* key : {"train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"}) {
    const std::string error = error_of_text(std::string("{\"") + key + "\": 0}");
    EXPECT_CONTAINS(error, key);
    EXPECT_CONTAINS(error, "at least 1");
  }
}

TEST(Batch, NothingGivenIsAnErrorInTrainingOnly) {
  for (const char* text :
       {"{}", R"({"gradient_accumulation_steps": 2})",
        R"({"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto"})", R"({"train_batch_size": null})"}) {
    EXPECT_CONTAINS(error_of_text(text), "either train_batch_size or train_micro_batch_size_per_gpu needs to be given");
    EXPECT_EQ(error_of_text(text, 1, ParseMode::kZeroInit), "") << text;
  }
}

TEST(Batch, ZeroInitNeitherChecksNorFills) {
  const Config config = Config::parse(R"({"train_batch_size": 7, "train_micro_batch_size_per_gpu": 3,
                                          "gradient_accumulation_steps": "auto"})",
                                      2, ParseMode::kZeroInit);
  EXPECT_EQ(config->train_batch_size, 7);
  EXPECT_EQ(config->train_micro_batch_size_per_gpu, 3);
  EXPECT_FALSE(config->gradient_accumulation_steps.has_value());
  EXPECT_TRUE(config.warnings().empty());
}

TEST(Batch, ProductsThatDoNotFitAreErrors) {
  const std::string huge = "4611686018427387904";
  EXPECT_CONTAINS(
      error_of_text("{\"train_micro_batch_size_per_gpu\": " + huge + ", \"gradient_accumulation_steps\": 8}", 2),
      "too large");
  EXPECT_NE(error_of_text("{\"train_batch_size\": 8, \"train_micro_batch_size_per_gpu\": " + huge +
                              ", \"gradient_accumulation_steps\": 8}",
                          2),
            "");
}

TEST(Batch, NoRanksIsAnError) {
  EXPECT_CONTAINS(error_of("", 0), "data_parallel_size must be at least 1");
}

}  // namespace
}  // namespace deepscale
