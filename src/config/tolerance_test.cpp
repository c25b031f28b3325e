// What frameworks, examples and old configurations put into a configuration is accepted.
#include "config/test_support.h"

namespace deepscale {
namespace {

TEST(Tolerance, BooleansForZeroOptimizationMeanStages) {
  const Config on = parsed(R"("zero_optimization": true)");
  EXPECT_EQ(on->zero.stage, 1);
  EXPECT_TRUE(warned(on, "zero_optimization: deprecated"));
  EXPECT_EQ(parsed(R"("zero_optimization": false)")->zero.stage, 0);
  EXPECT_EQ(parsed(R"("zero_optimization": true, "allgather_size": 200)")->zero.allgather_bucket_size, 200);
  EXPECT_EQ(parsed(R"("allgather_size": 200)")->zero.stage, 0);
}

TEST(Tolerance, BooleansForGradientClippingAreNumbers) {
  EXPECT_EQ(parsed(R"("gradient_clipping": true)")->gradient_clipping, 1.0);
  EXPECT_EQ(parsed(R"("gradient_clipping": false)")->gradient_clipping, 0.0);
}

TEST(Tolerance, TheOldOffloadKeysBecomeSections) {
  const Config config = parsed(R"("zero_optimization": {"stage": 3, "cpu_offload": true, "cpu_offload_param": true,
                                   "cpu_offload_use_pin_memory": false})");
  EXPECT_EQ(config->zero.optimizer_device(), OffloadDevice::kCpu);
  EXPECT_EQ(config->zero.param_device(), OffloadDevice::kCpu);
  EXPECT_FALSE(config->zero.offload_optimizer->pin_memory);
  EXPECT_TRUE(warned(config, "zero_optimization.cpu_offload: deprecated; use offload_optimizer"));

  const Config off = parsed(R"("zero_optimization": {"stage": 2, "cpu_offload": false})");
  EXPECT_FALSE(off->zero.offload_optimizer.has_value());
  EXPECT_EQ(
      error_of(R"("zero_optimization": {"stage": 2, "cpu_offload": false, "offload_optimizer": {"device": "cpu"}})"),
      "");
  EXPECT_CONTAINS(
      error_of(R"("zero_optimization": {"stage": 2, "cpu_offload": true, "offload_optimizer": {"device": "cpu"}})"),
      "cannot be given together");
  EXPECT_CONTAINS(error_of(R"("zero_optimization": {"stage": 2, "cpu_offload": "x"})"), "must be true or false");
}

TEST(Tolerance, DeprecatedNamesForwardWithAWarning) {
  const Config config =
      parsed(R"("zero_optimization": {"stage": 3, "stage3_gather_fp16_weights_on_model_save": true})");
  EXPECT_TRUE(config->zero.stage3_gather_16bit_weights_on_model_save);
  EXPECT_TRUE(warned(config, "deprecated; use 'stage3_gather_16bit_weights_on_model_save'"));

  const Config inference = parsed(R"("inference": {"replace_method": "auto", "mp_size": 1, "kernel_inject": false})");
  EXPECT_EQ(inference->inference->tensor_parallel.tp_size, 1);
  EXPECT_TRUE(warned(inference, "inference.mp_size: deprecated"));
  EXPECT_CONTAINS(error_of(R"("inference": {"mp_size": 1, "tp": {"tp_size": 1}})"), "cannot be given together");
}

TEST(Tolerance, AutoLeavesDefaultsOfSectionsSilentlyWhereTheyDecideNothing) {
  const Config config = parsed(R"("fp16": {"enabled": false, "loss_scale": "auto"},
      "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto",
      "stage3_param_persistence_threshold": "auto", "leaf_module": {"names": "auto"}},
      "checkpoint": {"use_node_local_storage": "auto"}, "pipeline": {"stages": "auto"},
      "data_types": {"keep_in_fp32_modules": "auto"})");
  EXPECT_FALSE(config->fp16.enabled);
  EXPECT_EQ(config->zero.reduce_bucket_size, 500'000'000);
  EXPECT_FALSE(config->pipeline.stages.has_value());
  EXPECT_TRUE(config.warnings().empty()) << config.warnings().front();
}

TEST(Tolerance, AutoThatNobodyReplacedIsWarnedAboutAtTopLevelAndInParameters) {
  const char* text = R"("gradient_clipping": "auto", "gradient_accumulation_steps": "auto",
      "optimizer": {"type": "AdamW", "params": {"lr": "auto", "eps": 1e-8}},
      "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}})";
  const Config config = parsed(text);
  EXPECT_EQ(config->gradient_clipping, 1.0);
  EXPECT_EQ(config->optimizer.params.text, R"({"eps":1e-08})");
  EXPECT_EQ(config->scheduler.params.text, "{}");
  EXPECT_TRUE(warned(config, "gradient_clipping: is still \"auto\""));
  EXPECT_TRUE(warned(config, "optimizer.params.lr: is still \"auto\""));
  const Config sections = parsed(R"("bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"},
      "zero_optimization": {"stage": "auto", "offload_optimizer": {"device": "auto"}})");
  for (const char* key : {"bf16.enabled", "fp16.enabled", "zero_optimization.stage", "offload_optimizer.device"}) {
    EXPECT_TRUE(warned(sections, std::string(key) + ": is still \"auto\"")) << key;
  }

  const Config early = Config::parse(with_batch(text), 1, ParseMode::kZeroInit);
  EXPECT_TRUE(early.warnings().empty());
}

TEST(Tolerance, NullAtTopLevelMeansNotGiven) {
  const Config config = parsed(R"("optimizer": null, "scheduler": null, "fp16": null, "zero_optimization": null,
      "gradient_clipping": null, "communication_data_type": null, "steps_per_print": null, "log_level": null,
      "zero_allow_untested_optimizer": null, "aio": null, "weight_quantization": null)");
  EXPECT_FALSE(config->optimizer.type.has_value());
  EXPECT_EQ(config->gradient_clipping, 1.0);
  EXPECT_TRUE(config.warnings().empty());
}

TEST(Tolerance, NullIsAcceptedWhereItMeansSomething) {
  const Config config = parsed(R"("zero_optimization": {"stage": 3, "overlap_comm": null, "zenflow": null,
      "offload_param": null, "offload_optimizer": {"device": null, "nvme_path": null}},
      "optimizer": {"type": null, "params": null}, "data_types": {"grad_accum_dtype": null})");
  EXPECT_EQ(config->zero.overlap_comm, true);
  EXPECT_EQ(config->zero.optimizer_device(), OffloadDevice::kNone);
  EXPECT_EQ(config->optimizer.params.text, "{}");
}

TEST(Tolerance, InfinityMeansNeverOrUnlimited) {
  const Config config = parsed(R"("steps_per_print": Infinity, "zero_optimization": {"stage": 3,
      "stage3_max_live_parameters": Infinity, "sub_group_size": 1e19})");
  EXPECT_FALSE(config->steps_per_print.has_value());
  EXPECT_EQ(config->zero.stage3_max_live_parameters, kUnlimited);
  EXPECT_EQ(config->zero.sub_group_size, kUnlimited);
  EXPECT_NE(error_of(R"("zero_optimization": {"reduce_bucket_size": Infinity})"), "");
}

TEST(Tolerance, NumbersAndBooleansWrittenAsTextAreReadWithAWarning) {
  const Config config =
      parsed(R"("zero_optimization": {"stage": "2", "reduce_bucket_size": "5e8", "overlap_comm": "False"},
                                   "gradient_clipping": "0.5", "fp16": {"enabled": 1})");
  EXPECT_EQ(config->zero.stage, 2);
  EXPECT_EQ(config->zero.reduce_bucket_size, 500'000'000);
  EXPECT_EQ(config->zero.overlap_comm, false);
  EXPECT_EQ(config->gradient_clipping, 0.5);
  EXPECT_TRUE(config->fp16.enabled);
  EXPECT_EQ(config.warnings().size(), 4u);
  EXPECT_TRUE(warned(config, "zero_optimization.stage: an integer is written as text"));
}

TEST(Tolerance, KeysWithDotsAreLeftAlone) {
  const Config config = parsed(R"("zero_optimization.reduce_bucket_size": 100, "zero_optimization": {"stage": 3})");
  EXPECT_EQ(config->zero.reduce_bucket_size, 500'000'000);
  EXPECT_TRUE(warned(config, "zero_optimization.reduce_bucket_size: has no effect"));
}

TEST(Tolerance, AccelerateConfigurationsPass) {
  EXPECT_EQ(error_of_text(R"({"train_batch_size": "auto", "train_micro_batch_size_per_gpu": 2,
      "gradient_accumulation_steps": 2, "zero_optimization": {"stage": 3,
      "offload_optimizer": {"device": "none", "nvme_path": null}, "offload_param": {"device": "none", "nvme_path": null},
      "stage3_gather_16bit_weights_on_model_save": true}, "steps_per_print": Infinity,
      "fp16": {"enabled": true, "auto_cast": true}, "bf16": {"enabled": false}, "zero_allow_untested_optimizer": true,
      "zero_force_ds_cpu_optimizer": false, "communication_data_type": "fp16", "msamp": {"enabled": false, "opt_level": "O1"}})",
                          2),
            "");
}

TEST(Tolerance, LightningConfigurationsPass) {
  EXPECT_EQ(error_of_text(R"({"activation_checkpointing": {"partition_activations": false, "cpu_checkpointing": false,
      "contiguous_memory_optimization": false, "synchronize_checkpoint_boundary": false},
      "aio": {"block_size": 1048576, "queue_depth": 8, "single_submit": false, "overlap_events": true, "thread_count": 1},
      "zero_allow_untested_optimizer": true, "zero_optimization": {"stage": 2, "contiguous_gradients": true,
      "overlap_comm": true, "allgather_partitions": true, "reduce_scatter": true, "allgather_bucket_size": 200000000,
      "reduce_bucket_size": 200000000, "sub_group_size": 1000000000000},
      "fp16": {"enabled": true, "loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 1000, "hysteresis": 2,
      "min_loss_scale": 1}, "gradient_accumulation_steps": 1, "train_micro_batch_size_per_gpu": 1, "gradient_clipping": 0.0})",
                          2),
            "");
}

TEST(Tolerance, ExampleScriptsPass) {
  const std::string cifar = R"({"train_batch_size": 16, "steps_per_print": 2000,
      "optimizer": {"type": "Adam", "params": {"lr": 0.001, "betas": [0.8, 0.999], "eps": 1e-8, "weight_decay": 3e-7}},
      "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": 0, "warmup_max_lr": 0.001, "warmup_num_steps": 1000}},
      "gradient_clipping": 1.0, "prescale_gradients": false, "bf16": {"enabled": false},
      "fp16": {"enabled": true, "fp16_master_weights_and_grads": false, "loss_scale": 0, "loss_scale_window": 500,
      "hysteresis": 2, "min_loss_scale": 1, "initial_scale_power": 15}, "wall_clock_breakdown": false,
      "zero_optimization": {"stage": 2, "allgather_partitions": true, "reduce_scatter": true,
      "allgather_bucket_size": 50000000, "reduce_bucket_size": 50000000, "overlap_comm": true,
      "contiguous_gradients": true, "cpu_offload": false}})";
  EXPECT_EQ(error_of_text(cifar, 2), "");
  // DeepSpeed-Chat switches offload_param on in stage 2, where it has no effect.
  const Config chat = parsed(R"("steps_per_print": 10, "zero_optimization": {"stage": 2, "overlap_comm": true,
      "offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "cpu"}, "stage3_param_persistence_threshold": 1e4,
      "stage3_max_live_parameters": 3e7, "stage3_prefetch_bucket_size": 3e7, "memory_efficient_linear": false},
      "bfloat16": {"enabled": true}, "gradient_clipping": 1.0, "prescale_gradients": false,
      "hybrid_engine": {"enabled": false, "max_out_tokens": 512, "inference_tp_size": 1, "release_inference_cache": false,
      "pin_parameters": true, "tp_gather_partition_size": 8},
      "tensorboard": {"enabled": false, "output_path": "x/ds_tensorboard_logs/", "job_name": "y_tensorboard"})");
  EXPECT_TRUE(warned(chat, "zero_optimization.offload_param: has no effect in stage 2"));
  EXPECT_EQ(chat.warnings().size(), 1u);
}

}  // namespace
}  // namespace deepscale
