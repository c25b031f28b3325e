#include "config/elasticity.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <list>
#include <string>

#include "config/test_support.h"

namespace deepscale {
namespace {

using config::elastic_batch;
using config::elastic_micro_batch;
using config::ElasticBatch;
using config::Json;

/// Settings, a number of ranks (0: none given), and what DeepSpeed 0.19.6 computes from them.
struct Case {
  ElasticityOptions options;
  int64_t ranks;
  int64_t batch;
  int64_t micro;  ///< 0: no number of ranks was given
  int64_t valid_count;
  int64_t valid_sum;
};

ElasticityOptions options_of(double version, int64_t max_batch, std::vector<int64_t> micro_batches, int64_t min_gpus,
                             int64_t max_gpus, bool prefer_larger, int64_t per_node = 1, int64_t model_parallel = 1) {
  ElasticityOptions options;
  options.enabled = true;
  options.version = version;
  options.max_train_batch_size = max_batch;
  options.micro_batch_sizes = std::move(micro_batches);
  options.min_gpus = min_gpus;
  options.max_gpus = max_gpus;
  options.prefer_larger_batch = prefer_larger;
  options.num_gpus_per_node = per_node;
  options.model_parallel_size = model_parallel;
  return options;
}

const std::vector<Case>& cases() {
  static const std::vector<Case> kCases = {
#include "config/elasticity_cases.inc"
  };
  return kCases;
}

class WithVariable {
 public:
  WithVariable(const std::string& name, const std::string& value) : name_(name) { put(name + "=" + value); }
  ~WithVariable() { put(name_ + "="); }

 private:
  /// putenv, because every system has it. Some keep the string that they are given, so none is freed.
  static void put(const std::string& text) {
    static std::list<std::string> kept;
    putenv(kept.emplace_back(text).data());
  }

  std::string name_;
};

std::string configuration(std::string_view elasticity, std::string_view more = "") {
  return R"({"elasticity": {"enabled": true, )" + std::string(elasticity) + "}" + std::string(more) + "}";
}

constexpr std::string_view kSmall = R"("version": 0.1, "max_train_batch_size": 4, "micro_batch_sizes": [1, 2, 3, 4])";

TEST(Elasticity, AgreesWithDeepSpeed) {
  ASSERT_GE(cases().size(), 40U);
  for (const Case& expected : cases()) {
    const ElasticityOptions& o = expected.options;
    SCOPED_TRACE(testing::Message() << "version " << o.version << ", max " << o.max_train_batch_size << ", micro "
                                    << testing::PrintToString(o.micro_batch_sizes) << ", gpus " << o.min_gpus << ".."
                                    << o.max_gpus << ", ranks " << expected.ranks);
    const ElasticBatch batch =
        elastic_batch(o, expected.ranks == 0 ? std::nullopt : std::optional<int64_t>(expected.ranks));
    EXPECT_EQ(batch.train_batch_size, expected.batch);
    EXPECT_EQ(static_cast<int64_t>(batch.valid_sizes.size()), expected.valid_count);
    int64_t sum = 0;
    for (const int64_t size : batch.valid_sizes) sum += size;
    EXPECT_EQ(sum, expected.valid_sum);
    if (expected.ranks != 0) {
      EXPECT_EQ(elastic_micro_batch(o, batch, expected.ranks), expected.micro);
    }
  }
}

TEST(Elasticity, EveryValidNumberOfRanksSharesTheBatchWithoutRemainder) {
  const ElasticityOptions options = options_of(0.1, 10000, {8, 12, 16, 17}, 32, 1500, true);
  const ElasticBatch batch = elastic_batch(options, std::nullopt);
  EXPECT_EQ(batch.train_batch_size, 9792);
  EXPECT_EQ(batch.valid_sizes.size(), 23U);
  for (const int64_t ranks : batch.valid_sizes) {
    const int64_t micro = elastic_micro_batch(options, batch, ranks);
    EXPECT_EQ(batch.train_batch_size % (micro * ranks), 0) << ranks;
  }
}

TEST(Elasticity, SettingsThatAllowNoBatchAreRefused) {
  EXPECT_THROW(elastic_batch(options_of(0.1, 2, {1, 4}, 1, 10, true), {}), ElasticityConfigError);
  EXPECT_THROW(elastic_batch(options_of(0.1, 100, {}, 1, 10, true), {}), ElasticityConfigError);
  EXPECT_THROW(elastic_batch(options_of(0.1, 100, {2}, 10, 9, true), {}), ElasticityConfigError);
  EXPECT_THROW(elastic_batch(options_of(0.1, 10, {2}, 100, 200, true), {}), ElasticityConfigError);
  EXPECT_THROW(elastic_batch(options_of(0.3, 100, {2}, 1, 10, true), {}), ElasticityConfigError);
  EXPECT_THROW(elastic_batch(options_of(0.2, 100, {2}, 1, 10, true), {}), ElasticityConfigError);
  EXPECT_THROW(elastic_batch(options_of(0.1, 100, {2}, 1, 10, true, 8, 2), {}), ElasticityConfigError);
  EXPECT_THROW(elastic_batch(options_of(0.2, 100, {2}, 1, 10, true, 8, 16), 1), ElasticityError);
  EXPECT_THROW(elastic_batch(options_of(0.2, 100, {8}, 1, 10, true), 13), ElasticityIncompatibleWorldSize);
}

TEST(Elasticity, LargeSettingsTakeNoTime) {
  const ElasticBatch batch =
      elastic_batch(options_of(0.1, int64_t{1} << 40, {999983, 1000003, 7}, 1, int64_t{1} << 40, true), {});
  EXPECT_FALSE(batch.valid_sizes.empty());
  EXPECT_THROW(elastic_batch(options_of(0.1, INT64_MAX, {7}, 1, 10, true), {}), ElasticityConfigError);
}

TEST(Elasticity, DeterminesTheBatchSizesOfAConfiguration) {
  const Config config = Config::parse(configuration(kSmall), 2);
  EXPECT_EQ(config->train_batch_size, 4);
  EXPECT_EQ(config->train_micro_batch_size_per_gpu, 2);
  EXPECT_EQ(config->gradient_accumulation_steps, 1);
  const Config again = Config::parse(config.to_json(), 2);
  EXPECT_EQ(again.to_json(), config.to_json());
  EXPECT_TRUE(again.warnings().empty());
}

TEST(Elasticity, ANumberOfRanksOutsideTheListIsRefusedByItsOwnClass) {
  EXPECT_THROW(Config::parse(configuration(kSmall), 3), ElasticityIncompatibleWorldSize);
  EXPECT_CONTAINS(error_of_text(configuration(kSmall), 3), "[1, 2, 4]");
}

TEST(Elasticity, OtherBatchSizesAreRefusedOrIgnoredWithAWarning) {
  constexpr std::string_view kBatch = R"(, "train_batch_size": 2)";
  EXPECT_THROW(Config::parse(configuration(kSmall, kBatch), 1), ElasticityConfigError);
  const std::string ignoring = std::string(kSmall) + R"(, "ignore_non_elastic_batch_info": true)";
  const Config config = Config::parse(configuration(ignoring, kBatch), 1);
  EXPECT_EQ(config->train_batch_size, 4);
  EXPECT_TRUE(warned(config, "train_batch_size: 2 is ignored"));
}

TEST(Elasticity, IncompleteOrUnusableSectionsAreRefusedByTheirOwnClass) {
  for (const char* section : {R"("max_train_batch_size": 4)", R"("micro_batch_sizes": [1])",
                              R"("max_train_batch_size": 4, "micro_batch_sizes": 5)",
                              R"("max_train_batch_size": 4, "micro_batch_sizes": ["few"])",
                              R"("max_train_batch_size": 4, "micro_batch_sizes": [-1])",
                              R"("max_train_batch_size": 4, "micro_batch_sizes": [1], "min_gpus": -1)",
                              R"("max_train_batch_size": 4, "micro_batch_sizes": [1], "min_time": -1)",
                              R"("max_train_batch_size": 4, "micro_batch_sizes": [1], "min_gpus": 3, "max_gpus": 2)"}) {
    EXPECT_THROW(Config::parse(configuration(section), 1), ElasticityConfigError) << section;
  }
}

TEST(Elasticity, TheSchedulersSectionHasToBeTheSame) {
  {
    const WithVariable scheduled("DEEPSPEED_ELASTICITY_CONFIG",
                                 R"({"enabled": true, "max_train_batch_size": 8, "micro_batch_sizes": [1, 2, 3, 4],
                                     "version": 0.1})");
    EXPECT_THROW(Config::parse(configuration(kSmall), 1), ElasticityConfigError);
    EXPECT_CONTAINS(error_of_text(configuration(kSmall)), "elasticity.max_train_batch_size is 4 here, but 8");
  }
  {
    const WithVariable scheduled("DEEPSPEED_ELASTICITY_CONFIG", "not JSON");
    EXPECT_CONTAINS(error_of_text(configuration(kSmall)), "DEEPSPEED_ELASTICITY_CONFIG cannot be used");
  }
  const std::string same = "{" + std::string(kSmall) + "}";
  const WithVariable scheduled("DEEPSPEED_ELASTICITY_CONFIG", same.c_str());
  EXPECT_EQ(Config::parse(configuration(kSmall), 1)->train_batch_size, 4);
}

TEST(Elasticity, CountsDataParallelRanksInWorldSize) {
  const ElasticityOptions options = options_of(0.2, 1000, {2, 4}, 1, 64, true, 8, 2);
  {
    const WithVariable ranks("WORLD_SIZE", "16");
    EXPECT_EQ(config::environment_data_parallel_size(options), 8);
  }
  {
    const WithVariable ranks("WORLD_SIZE", "15");
    EXPECT_THROW(config::environment_data_parallel_size(options), ElasticityIncompatibleWorldSize);
  }
  const WithVariable ranks("WORLD_SIZE", "many");
  EXPECT_THROW(config::environment_data_parallel_size(options), ElasticityConfigError);
}

TEST(Elasticity, WithoutAPreferenceForLargeBatchesTheFirstFittingMicroBatchIsTaken) {
  ElasticityOptions options = options_of(0.2, 2048, {4, 2, 8}, 1, 64, false);
  const ElasticBatch batch{64, {4}};
  EXPECT_EQ(config::preferred_micro_batch(options, batch, 4), 4);
  options.prefer_larger_batch = true;
  EXPECT_EQ(config::preferred_micro_batch(options, batch, 4), 8);
}

}  // namespace
}  // namespace deepscale
