// Types, ranges, names and forms of the configuration.
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "config/test_support.h"

namespace deepscale {
namespace {

TEST(Parse, DefaultsAreDeepSpeeds) {
  const Config config = parsed("");
  EXPECT_EQ(config->zero.stage, 0);
  EXPECT_EQ(config->zero.reduce_bucket_size, 500'000'000);
  EXPECT_EQ(config->zero.stage3_model_persistence_threshold, kUnlimited);
  EXPECT_EQ(config->gradient_clipping, 1.0);
  EXPECT_FALSE(config->steps_per_print.has_value());
  EXPECT_EQ(config->fp16.hysteresis, 2);
  EXPECT_EQ(config->fp16.initial_scale_power, 16);
  EXPECT_TRUE(config->bf16.check_grad_overflow);
  EXPECT_EQ(config->checkpoint.tag_validation, TagValidation::kWarn);
  EXPECT_EQ(config->seq_parallel_communication_data_type, FloatType::kFp32);
  EXPECT_FALSE(config->communication_data_type.has_value());
  EXPECT_FALSE(config->zero.offload_param.has_value());
  EXPECT_EQ(config->zero.leaf_module.classes.size(), 3u);
  EXPECT_TRUE(config.warnings().empty());
}

TEST(Parse, ValuesArriveInTheirStructs) {
  const Config config = parsed(R"("zero_optimization": {"stage": 3, "reduce_bucket_size": 5e7, "sub_group_size": 1e12,
      "offload_optimizer": {"device": "cpu", "pin_memory": false, "ratio": 0.5}, "offload_param": {"device": "cpu"}},
      "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "betas": [0.9, 0.95]}},
      "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 10}},
      "fp16": {"enabled": true, "loss_scale": 128.0, "initial_scale_power": 15},
      "communication_data_type": "fp32", "data_types": {"grad_accum_dtype": "fp32", "buffer_dtype": "torch.bfloat16"},
      "checkpoint": {"tag_validation": "FAIL"}, "comms_logger": {"enabled": true, "prof_ops": ["all_reduce"]})");
  EXPECT_EQ(config->zero.stage, 3);
  EXPECT_EQ(config->zero.reduce_bucket_size, 50'000'000);
  EXPECT_EQ(config->zero.sub_group_size, 1'000'000'000'000);
  EXPECT_EQ(config->zero.optimizer_device(), OffloadDevice::kCpu);
  EXPECT_FALSE(config->zero.offload_optimizer->pin_memory);
  EXPECT_EQ(config->zero.offload_optimizer->ratio, 0.5);
  EXPECT_EQ(config->zero.param_device(), OffloadDevice::kCpu);
  EXPECT_EQ(config->optimizer.type, "AdamW");
  EXPECT_EQ(config->optimizer.params.text, R"({"lr":0.0001,"betas":[0.9,0.95]})");
  EXPECT_EQ(config->scheduler.params.text, R"({"warmup_num_steps":10})");
  EXPECT_EQ(config->fp16.loss_scale, 128.0);
  EXPECT_EQ(config->communication_data_type, FloatType::kFp32);
  EXPECT_EQ(config->data_types.grad_accum_dtype, FloatType::kFp32);
  EXPECT_EQ(config->data_types.buffer_dtype, FloatType::kBf16);
  EXPECT_EQ(config->checkpoint.tag_validation, TagValidation::kFail);
  EXPECT_EQ(config->comms_logger.prof_ops, std::vector<std::string>{"all_reduce"});
}

TEST(Parse, OverlapIsOnExactlyInStage3UnlessGiven) {
  EXPECT_EQ(parsed(R"("zero_optimization": {"stage": 2})")->zero.overlap_comm, false);
  EXPECT_EQ(parsed(R"("zero_optimization": {"stage": 3})")->zero.overlap_comm, true);
  EXPECT_EQ(parsed(R"("zero_optimization": {"stage": 3, "overlap_comm": false})")->zero.overlap_comm, false);
  EXPECT_EQ(parsed(R"("zero_optimization": {"stage": 1, "overlap_comm": true})")->zero.overlap_comm, true);
}

TEST(Parse, WrongTypesNameThePathWhatWasFoundAndWhatIsExpected) {
  EXPECT_EQ(error_of(R"("zero_optimization": {"stage": "two"})"),
            R"(zero_optimization.stage: must be an integer from 0 to 3, found the string "two")");
  EXPECT_CONTAINS(error_of(R"("zero_optimization": {"stage": true})"), "found true");
  EXPECT_CONTAINS(error_of(R"("zero_optimization": {"stage": 1.5})"), "must be a whole number");
  EXPECT_CONTAINS(error_of(R"("zero_optimization": {"stage": null})"), "found null");
  EXPECT_CONTAINS(error_of(R"("zero_optimization": {"overlap_comm": 3})"), "must be true or false");
  EXPECT_CONTAINS(error_of(R"("zero_optimization": [])"), "zero_optimization: must be an object");
  EXPECT_CONTAINS(error_of(R"("fp16": true)"), "fp16: must be an object");
  EXPECT_CONTAINS(error_of(R"("gradient_clipping": "much")"), "gradient_clipping: must be a number");
  EXPECT_CONTAINS(error_of(R"("gradient_clipping": Infinity)"), "finite");
  EXPECT_CONTAINS(error_of(R"("comms_logger": {"prof_ops": "all"})"), "must be a list");
  EXPECT_CONTAINS(error_of(R"("comms_logger": {"prof_ops": ["a", 1]})"), "comms_logger.prof_ops[1]: must be a string");
  EXPECT_CONTAINS(error_of(R"("optimizer": {"type": 3})"), "optimizer.type: must be a string");
  EXPECT_CONTAINS(error_of(R"("optimizer": {"params": [1]})"), "optimizer.params: must be an object");
  EXPECT_CONTAINS(error_of(R"("communication_data_type": "int8")"), R"("fp32", "fp16" or "bf16")");
  EXPECT_CONTAINS(error_of(R"("gradient_allreduce_op": "max")"), R"("mean" or "sum")");
  EXPECT_CONTAINS(error_of(R"("log_level": "loud")"), "\"debug\"");
  EXPECT_CONTAINS(error_of(R"("checkpoint": {"tag_validation": "Maybe"})"), "checkpoint.tag_validation");
  EXPECT_CONTAINS(error_of(R"("zero_optimization": {"offload_optimizer": {"device": "gpu"}})"),
                  "\"none\", \"cpu\" or \"nvme\"");
  EXPECT_CONTAINS(
      error_of(R"("data_efficiency": {"data_sampling": {"curriculum_learning": {"curriculum_metrics": []}}})"),
      "must be an object of named entries");
  EXPECT_CONTAINS(error_of_text("[]"), "must be an object");
}

TEST(Parse, RangesAreChecked) {
  EXPECT_CONTAINS(error_of(R"("zero_optimization": {"stage": 4})"), "from 0 to 3, found 4");
  EXPECT_CONTAINS(error_of(R"("zero_optimization": {"reduce_bucket_size": 0})"), "of at least 1, found 0");
  EXPECT_CONTAINS(error_of(R"("zero_optimization": {"sub_group_size": -1})"), "of at least 0");
  EXPECT_CONTAINS(error_of(R"("zero_optimization": {"reduce_bucket_size": 1e30})"), "reduce_bucket_size");
  EXPECT_CONTAINS(error_of(R"("zero_optimization": {"reduce_bucket_size": 18446744073709551615})"),
                  "reduce_bucket_size");
  EXPECT_CONTAINS(error_of(R"("gradient_clipping": -1)"), "of at least 0");
  EXPECT_CONTAINS(error_of(R"("zero_optimization": {"zenflow": {"topk_ratio": 1.0}})"),
                  "greater than 0 and less than 1");
  EXPECT_CONTAINS(error_of(R"("fp16": {"loss_scale": -1})"), "fp16.loss_scale");
  EXPECT_CONTAINS(error_of(R"("fp16": {"loss_scale": true})"), "found true");
  EXPECT_CONTAINS(error_of(R"("fp16": {"loss_scale": Infinity})"), "finite");
  EXPECT_CONTAINS(error_of(R"("steps_per_print": 0)"), "of at least 1");
}

TEST(Parse, AllProblemsAreReportedTogether) {
  const std::string error =
      error_of(R"("zero_optimization": {"stage": 9, "overlap_com": 1}, "fp16": {"enabled": "no"})");
  EXPECT_CONTAINS(error, "3 problems");
  EXPECT_CONTAINS(error, "zero_optimization.stage");
  EXPECT_CONTAINS(error, "zero_optimization.overlap_com: unknown key; did you mean 'overlap_comm'?");
  EXPECT_CONTAINS(error, "fp16.enabled");
}

TEST(Parse, UnknownKeysAreErrorsInTypedSections) {
  for (const char* section : {"fp16", "bf16", "tensorboard", "wandb", "csv_monitor", "comet", "comms_logger", "compile",
                              "tensor_parallel", "hybrid_engine", "timers", "zero_optimization", "inference"}) {
    const std::string error = error_of("\"" + std::string(section) + R"(": {"enabeld_": 1})");
    EXPECT_CONTAINS(error, std::string(section) + ".enabeld_: unknown key");
  }
  EXPECT_CONTAINS(error_of(R"("zero_optimization": {"offload_param": {"devise": "cpu"}})"), "did you mean 'device'?");
  EXPECT_CONTAINS(error_of(R"("zero_optimization": {"leaf_module": {"class": []}})"), "did you mean 'classes'?");
}

TEST(Parse, UnknownKeysElsewhereAreWarnedAboutOnceWithTheNearestName) {
  const Config config = parsed(R"("gradient_clippping": 1.0, "aio": {"queue_deep": 2}, "zzzzzzzz": 1)");
  EXPECT_EQ(config.warnings().size(), 3u);
  EXPECT_TRUE(warned(config, "gradient_clippping: unknown key, ignored; did you mean 'gradient_clipping'?"));
  EXPECT_TRUE(warned(config, "aio.queue_deep: unknown key, ignored; did you mean 'queue_depth'?"));
  EXPECT_TRUE(warned(config, "zzzzzzzz: unknown key, ignored; remove it"));
}

TEST(Parse, AliasesMeanTheSameOption) {
  const Config config = parsed(R"("bfloat16": {"enabled": true}, "aio": {"thread_count": 4},
      "zero_optimization": {"stage": 3, "prefetch_bucket_size": 10, "param_persistence_threshold": 11,
      "model_persistence_threshold": 12, "max_live_parameters": 13, "max_reuse_distance": 14,
      "gather_16bit_weights_on_model_save": true})");
  EXPECT_TRUE(config->bf16.enabled);
  EXPECT_EQ(config->aio.intra_op_parallelism, 4);
  EXPECT_EQ(config->zero.stage3_prefetch_bucket_size, 10);
  EXPECT_EQ(config->zero.stage3_param_persistence_threshold, 11);
  EXPECT_EQ(config->zero.stage3_model_persistence_threshold, 12);
  EXPECT_EQ(config->zero.stage3_max_live_parameters, 13);
  EXPECT_EQ(config->zero.stage3_max_reuse_distance, 14);
  EXPECT_TRUE(config->zero.stage3_gather_16bit_weights_on_model_save);
  EXPECT_TRUE(config.warnings().empty());
}

TEST(Parse, OneSettingUnderTwoNamesMustAgree) {
  EXPECT_CONTAINS(error_of(R"("bf16": {"enabled": true}, "bfloat16": {"enabled": false})"),
                  "bfloat16: is the same setting as");
  EXPECT_EQ(error_of(R"("zero_optimization": {"prefetch_bucket_size": 5, "stage3_prefetch_bucket_size": 5})"), "");
  EXPECT_CONTAINS(error_of(R"("zero_optimization": {"prefetch_bucket_size": 5, "stage3_prefetch_bucket_size": 6})"),
                  "keep one");
}

TEST(Parse, TheResolvedConfigurationReadsBackToItself) {
  const Config first =
      parsed(R"("zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}, "mics_shard_size": 2},
      "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "limit": Infinity}}, "expert_parallel": {"top_k": 2},
      "steps_per_print": Infinity, "bfloat16": {"enabled": true}, "amp": {"enabled": false, "opt_level": "O1"},
      "checkpoint": {"tag_validation": "fail"}, "inference": {"dtype": "bf16"})",
             4);
  const Config second = Config::parse(first.to_json(), 4);
  EXPECT_EQ(second.to_json(), first.to_json());
  EXPECT_TRUE(second.warnings().empty()) << second.warnings().front();
  const Config third = Config::parse(first.to_json(/*indent=*/2), 4, ParseMode::kZeroInit);
  EXPECT_EQ(third.to_json(), first.to_json());

  const Config early = Config::parse("{}", 4, ParseMode::kZeroInit);
  EXPECT_EQ(Config::parse(early.to_json(), 4, ParseMode::kZeroInit).to_json(), early.to_json());
}

TEST(Parse, JsonTextAndSourceShowTheConfiguration) {
  const Config config = parsed(R"("bfloat16": {"enabled": true}, /* note */ "steps_per_print": Infinity)");
  EXPECT_CONTAINS(config.to_json(), R"("bf16":{"enabled":true)");
  EXPECT_CONTAINS(config.to_json(), R"("steps_per_print":null)");
  EXPECT_CONTAINS(config.to_json(), R"("stage3_model_persistence_threshold":9223372036854775807)");
  EXPECT_CONTAINS(config.to_json(), R"("stages":"auto")");
  EXPECT_CONTAINS(config.to_text(), "bf16.enabled = true\n");
  EXPECT_CONTAINS(config.to_text(), "zero_optimization.stage = 0\n");
  EXPECT_EQ(config.source_json(), R"({"train_batch_size":8,"bfloat16":{"enabled":true},"steps_per_print":Infinity})");
}

class ConfigFile : public ::testing::Test {
 protected:
  std::string write(const std::string& text) {
    std::ofstream(path_) << text;
    return path_.string();
  }
  void TearDown() override { std::filesystem::remove(path_); }
  std::filesystem::path path_ =
      std::filesystem::temp_directory_path() /
      (std::string("deepscale_") + ::testing::UnitTest::GetInstance()->current_test_info()->name() + ".json");
};

TEST_F(ConfigFile, IsReadWithItsComments) {
  const std::string path = write("# batch\n{\"train_batch_size\": 6,}\n");
  EXPECT_EQ(Config::from_file(path, 2)->train_micro_batch_size_per_gpu, 3);
  EXPECT_EQ(Config::open(path, 2)->train_micro_batch_size_per_gpu, 3);
}

TEST_F(ConfigFile, IsNamedInErrors) {
  const std::string path = write("{\"train_batch_size\": -6}");
  try {
    Config::from_file(path, 2);
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_CONTAINS(error.what(), path);
    EXPECT_CONTAINS(error.what(), "train_batch_size");
  }
}

TEST_F(ConfigFile, MayNotBeMissingOrAFolder) {
  EXPECT_THROW(Config::from_file("/no/such/file.json", 1), ConfigError);
  EXPECT_THROW(Config::from_file(std::filesystem::temp_directory_path().string(), 1), ConfigError);
  EXPECT_THROW(Config::open(std::filesystem::temp_directory_path().string(), 1), ConfigError);
}

TEST(Open, AcceptsJsonTextAndBase64Url) {
  EXPECT_EQ(Config::open(R"( {"train_batch_size": 8})", 1)->train_batch_size, 8);
  EXPECT_EQ(Config::open("eyJ0cmFpbl9iYXRjaF9zaXplIjogOH0=", 1)->train_batch_size, 8);
  EXPECT_EQ(Config::open("eyJ0cmFpbl9iYXRjaF9zaXplIjogOH0", 1)->train_batch_size, 8);
}

TEST(Open, RefusesEverythingElse) {
  for (const auto& source :
       std::vector<std::string>{"ds_config_missing.json", "", "AAAA", "not base64!", std::string(10000, 'A')}) {
    try {
      Config::open(source, 1);
      FAIL() << source;
    } catch (const ConfigError& error) {
      EXPECT_CONTAINS(error.what(), "neither the path of an existing file");
    }
  }
}

}  // namespace
}  // namespace deepscale
