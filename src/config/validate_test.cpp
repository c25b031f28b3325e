// Options that contradict each other.
#include "config/test_support.h"
#include "platform/files.h"

namespace deepscale {
namespace {

TEST(Validate, PrecisionsExcludeEachOther) {
  EXPECT_CONTAINS(error_of(R"("fp16": {"enabled": true}, "bf16": {"enabled": true})"),
                  "fp16 and bf16 cannot both be enabled");
  EXPECT_CONTAINS(error_of(R"("torch_autocast": {"enabled": true}, "bf16": {"enabled": true})"),
                  "torch_autocast.enabled");
  EXPECT_CONTAINS(error_of(R"("torch_autocast": {"enabled": true, "dtype": "float32"})"), "torch_autocast.dtype");
  EXPECT_EQ(error_of(R"("torch_autocast": {"enabled": true, "dtype": "bfloat16"})"), "");
}

TEST(Validate, ParamDtypeMustAgreeWithTheMode) {
  EXPECT_CONTAINS(error_of(R"("bf16": {"enabled": true}, "data_types": {"param_dtype": "fp16"})"),
                  "data_types.param_dtype");
  EXPECT_CONTAINS(error_of(R"("data_types": {"param_dtype": "bf16"})"), "neither fp16 nor bf16");
  EXPECT_EQ(error_of(R"("bf16": {"enabled": true}, "data_types": {"param_dtype": "bf16"})"), "");
  EXPECT_EQ(error_of(R"("data_types": {"param_dtype": "fp32"})"), "");
}

TEST(Validate, ADynamicLossScaleNeedsAPositiveWindowAndFloor) {
  EXPECT_CONTAINS(error_of(R"("fp16": {"enabled": true, "loss_scale_window": 0})"), "fp16.loss_scale_window");
  EXPECT_CONTAINS(error_of(R"("fp16": {"enabled": true, "min_loss_scale": 0})"), "fp16.min_loss_scale");
  EXPECT_EQ(error_of(R"("fp16": {"enabled": true, "loss_scale": 8, "loss_scale_window": 0, "min_loss_scale": 0})"), "");
  EXPECT_EQ(error_of(R"("fp16": {"enabled": false, "loss_scale_window": 0})"), "");
}

TEST(Validate, LowPrecisionMasterWeightsNeedZero) {
  EXPECT_CONTAINS(error_of(R"("bf16": {"enabled": true, "bf16_master_weights_and_grads": true})"),
                  "bf16.bf16_master_weights_and_grads: needs ZeRO");
  EXPECT_CONTAINS(error_of(R"("fp16": {"enabled": true, "fp16_master_weights_and_grads": true})"), "needs ZeRO");
  EXPECT_CONTAINS(
      error_of(
          R"("fp16": {"enabled": true, "fp16_master_weights_and_grads": true}, "zero_optimization": {"stage": 2})"),
      "offload_optimizer");
  EXPECT_CONTAINS(
      error_of(R"("bf16": {"enabled": true, "bf16_optimizer_states": true}, "zero_optimization": {"stage": 2})"),
      "needs bf16.bf16_master_weights_and_grads");
  EXPECT_EQ(error_of(R"("bf16": {"enabled": true, "bf16_master_weights_and_grads": true, "bf16_optimizer_states": true},
                         "zero_optimization": {"stage": 2})"),
            "");
}

TEST(Validate, AllgatherBucketsAreEvenInStages1And2) {
  EXPECT_CONTAINS(error_of(R"("zero_optimization": {"stage": 2, "allgather_bucket_size": 201})"), "must be even");
  EXPECT_EQ(error_of(R"("zero_optimization": {"stage": 3, "allgather_bucket_size": 201})"), "");
}

TEST(Validate, TheOldStage1IsGone) {
  EXPECT_CONTAINS(error_of(R"("zero_optimization": {"stage": 1, "legacy_stage1": true})"), "legacy_stage1");
}

TEST(Validate, PartialOffloadWorksOnlyInStage3) {
  const std::string_view offload = R"("offload_optimizer": {"device": "cpu", "ratio": 0.5}})";
  EXPECT_CONTAINS(error_of(R"("zero_optimization": {"stage": 2, )" + std::string(offload)),
                  "ratio: below 1 works only in stage 3");
  EXPECT_EQ(error_of(R"("zero_optimization": {"stage": 3, )" + std::string(offload)), "");
}

TEST(Validate, OffloadToFilesNeedsAPath) {
  EXPECT_CONTAINS(error_of(R"("zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}})"),
                  "offload_optimizer.nvme_path: is required");
  EXPECT_CONTAINS(error_of(R"("zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}})"),
                  "offload_param.nvme_path: is required");
  EXPECT_EQ(
      error_of(R"("zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme", "nvme_path": "/x"}})"), "");
}

TEST(Validate, APathOfFilesIsNotEmptyAndMayBeginWithATilde) {
  const auto config = [](const std::string& path) {
    return R"("zero_optimization": {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": ")" + path + R"("}})";
  };
  EXPECT_CONTAINS(
      error_of(config("")),
      R"(zero_optimization.offload_param.nvme_path: is required for device "nvme": name a folder, found "")");
  EXPECT_EQ(parsed(config("~/a"))->zero.offload_param->nvme_path, expanded_home("~/a"));
  EXPECT_EQ(parsed(config("a/~"))->zero.offload_param->nvme_path, "a/~");
}

TEST(Validate, WeightsAreQuantisedToEightOrFourBits) {
  for (const int bits : {-1, 0, 3, 5, 6, 7, 16}) {
    const std::string weight = "{\"num_bits\": " + std::to_string(bits) + "}";
    EXPECT_CONTAINS(
        error_of(R"("weight_quantization": {"quantized_initialization": )" + weight + "}"),
        "weight_quantization.quantized_initialization.num_bits: must be 4 or 8, found " + std::to_string(bits));
    EXPECT_CONTAINS(error_of(R"("weight_quantization": {"post_init_quant": {"mlp": )" + weight + "}}"),
                    "weight_quantization.post_init_quant.mlp.num_bits: must be 4 or 8, found " + std::to_string(bits));
  }
}

TEST(Validate, OffloadWithoutShardingIsWarnedAbout) {
  EXPECT_TRUE(warned(parsed(R"("zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}})"),
                     "offload_optimizer: has no effect in stage 0"));
  EXPECT_TRUE(warned(parsed(R"("zero_optimization": {"stage": 1, "offload_param": {"device": "cpu"}})"),
                     "offload_param: has no effect in stage 1"));
}

TEST(Validate, TheGradientNormMayBeLeftOutOnlyWhereNothingNeedsIt) {
  const auto error = [](std::string_view zero, std::string_view more) {
    return error_of(R"("zero_optimization": {"compute_grad_norm": false, )" + std::string(zero) + "}, " +
                    std::string(more));
  };
  EXPECT_CONTAINS(error(R"("stage": 3)", R"("gradient_clipping": 0)"), "works only in stages 1 and 2");
  EXPECT_CONTAINS(error(R"("stage": 2)", R"("gradient_clipping": 1)"), "needs gradient_clipping 0");
  EXPECT_CONTAINS(error(R"("stage": 2, "offload_optimizer": {"device": "cpu"})", R"("gradient_clipping": 0)"),
                  "offload_optimizer");
  EXPECT_CONTAINS(error(R"("stage": 2, "zenflow": {})", R"("gradient_clipping": 0)"), "does not work with zenflow");
  EXPECT_EQ(error(R"("stage": 2)", R"("gradient_clipping": 0)"), "");
}

TEST(Validate, ZenflowNeedsOffloadAndOrderedIntervals) {
  const auto error = [](std::string_view zenflow, std::string_view device) {
    return error_of(R"("zero_optimization": {"stage": 2, "offload_optimizer": {"device": ")" + std::string(device) +
                    R"("}, "zenflow": )" + std::string(zenflow) + "}");
  };
  EXPECT_CONTAINS(error("{}", "none"), "zenflow: needs offload_optimizer.device");
  EXPECT_CONTAINS(error(R"({"select_strategy": "step"})", "cpu"), "select_interval: must be a number");
  EXPECT_CONTAINS(error(R"({"select_strategy": "step", "select_interval": 2, "update_interval": 4})", "cpu"),
                  "must not be less than update_interval (4), found 2");
  EXPECT_FALSE(
      contains(error(R"({"select_strategy": "step", "select_interval": 4, "update_interval": 4})", "cpu"), "interval"));
  EXPECT_CONTAINS(error(R"({"select_interval": "sometimes"})", "cpu"), "select_interval");
  EXPECT_CONTAINS(error(R"({"update_interval": 0})", "cpu"), "of at least 1");
}

TEST(Validate, ShardGroupsMustDivideTheRanks) {
  EXPECT_CONTAINS(error_of(R"("zero_optimization": {"stage": 3, "mics_shard_size": 3})", 4), "must divide");
  EXPECT_CONTAINS(error_of(R"("zero_optimization": {"stage": 3, "mics_shard_size": 0})", 4), "found 0");
  EXPECT_CONTAINS(error_of(R"("zero_optimization": {"stage": 3, "zero_hpz_partition_size": 3})", 4), "must divide");
  EXPECT_CONTAINS(
      error_of(R"("zero_optimization": {"stage": 3, "zero_hpz_partition_size": 2, "mics_shard_size": 2})", 4),
      "cannot be combined");
  EXPECT_EQ(error_of(R"("zero_optimization": {"stage": 3, "mics_shard_size": 2})", 4), "");
  EXPECT_EQ(error_of(R"("zero_optimization": {"stage": 3, "zero_hpz_partition_size": 4})", 4), "");
  EXPECT_TRUE(
      warned(parsed(R"("zero_optimization": {"stage": 2, "mics_shard_size": 2})", 4), "has no effect in stage 2"));
}

TEST(Validate, SummedGradientsExcludeStage3) {
  EXPECT_CONTAINS(error_of(R"("gradient_allreduce_op": "SUM", "zero_optimization": {"stage": 3})"), "ZeRO stage 3");
  EXPECT_CONTAINS(error_of(R"("gradient_allreduce_op": "sum", "compile": {"deepcompile": true})"),
                  "compile.deepcompile");
  EXPECT_CONTAINS(error_of(R"("gradient_allreduce_op": "sum", "zero_optimization": {"stage": 2, "zenflow": {}})"),
                  "zenflow");
  EXPECT_EQ(
      error_of(R"("gradient_allreduce_op": "sum", "zero_optimization": {"stage": 2}, "prescale_gradients": true)"), "");
}

TEST(Validate, ReduceScatterExcludesPrescaling) {
  EXPECT_CONTAINS(error_of(R"("prescale_gradients": true, "zero_optimization": {"stage": 2})"), "prescale_gradients");
  EXPECT_CONTAINS(error_of(R"("gradient_predivide_factor": 2, "zero_optimization": {"stage": 3})"),
                  "gradient_predivide_factor");
  EXPECT_EQ(error_of(R"("prescale_gradients": true, "zero_optimization": {"stage": 2, "reduce_scatter": false})"), "");
  EXPECT_EQ(
      error_of(R"("prescale_gradients": true, "gradient_predivide_factor": 2, "zero_optimization": {"stage": 1})"), "");
}

TEST(Validate, UnmanagedAccumulationRestrictsOverlap) {
  EXPECT_CONTAINS(
      error_of(R"("managed_gradient_accumulation": false, "zero_optimization": {"stage": 1, "overlap_comm": true})"),
      "managed_gradient_accumulation");
  EXPECT_EQ(
      error_of(R"("managed_gradient_accumulation": false, "zero_optimization": {"stage": 2, "overlap_comm": true})"),
      "");
  EXPECT_CONTAINS(error_of(R"("managed_gradient_accumulation": false, "compile": {"deepcompile": true})"),
                  "managed_gradient_accumulation: false does not work with compile.deepcompile");
}

TEST(Validate, ContiguousActivationCheckpointsNeedTheirNumberAndPartitions) {
  EXPECT_CONTAINS(
      error_of(R"("activation_checkpointing": {"contiguous_memory_optimization": true, "number_checkpoints": 4})"),
      "partition_activations");
  EXPECT_CONTAINS(
      error_of(
          R"("activation_checkpointing": {"contiguous_memory_optimization": true, "partition_activations": true})"),
      "number_checkpoints");
  EXPECT_EQ(
      error_of(R"("activation_checkpointing": {"contiguous_memory_optimization": true, "partition_activations": true,
                         "number_checkpoints": 4})"),
      "");
}

TEST(Validate, CompressionAndQuantisationParametersAreRequired) {
  EXPECT_CONTAINS(
      error_of(R"("compression_training": {"weight_quantization": {"different_groups": {"g": {"params": {}}}}})"),
      "different_groups.g.params.start_bits: is required");
  EXPECT_CONTAINS(
      error_of(
          R"("compression_training": {"activation_quantization": {"different_groups": {"g": {"params": {"bits": 5}}}}})"),
      "must be 4 or 8, found 5");
  EXPECT_CONTAINS(error_of(R"("compression_training": {"head_pruning": {"shared_parameters": {"enabled": true}}})"),
                  "num_heads");
  EXPECT_CONTAINS(error_of(R"("weight_quantization": {"post_init_quant": {"q_proj": {"num_bits": 5}}})"),
                  "weight_quantization.post_init_quant.q_proj.num_bits");
  EXPECT_CONTAINS(error_of(R"("weight_quantization": {"quantized_initialization": {"group_dim": 2}})"),
                  "must be 0 or 1, found 2");
}

TEST(Validate, DataEfficiencyIsConsistent) {
  EXPECT_CONTAINS(error_of(R"("data_efficiency": {"data_routing": {"random_ltd": {"random_ltd_layer_num": 2,
                              "random_ltd_layer_id": [1]}}})"),
                  "must have random_ltd_layer_num (2) entries, found 1");
  EXPECT_CONTAINS(
      error_of(
          R"("data_efficiency": {"data_routing": {"random_ltd": {"layer_token_lr_schedule": {"enabled": true}}}})"),
      "layer_token_lr_schedule.enabled");
  EXPECT_CONTAINS(error_of(R"("data_efficiency": {"data_sampling": {"dynamic_batching": {"enabled": true}}})"),
                  "max_tokens");
}

TEST(Validate, DoubtfulSettingsAreWarnedAbout) {
  const Config config = parsed(R"("vocabulary_size": 50257, "disable_allgather": true,
      "optimizer": {"type": "AdamW", "params": {"max_grad_norm": 1.0}, "legacy_fusion": true},
      "zero_optimization": {"stage": 1, "elastic_checkpoint": true, "allgather_sequential": true,
                            "stage3_use_all_reduce_for_fetch_params": true, "module_granularity_threshold": 5})");
  EXPECT_TRUE(warned(config, "vocabulary_size: 50257 is not a multiple of 8"));
  EXPECT_TRUE(warned(config, "optimizer.params.max_grad_norm"));
  EXPECT_TRUE(warned(config, "zero_optimization.elastic_checkpoint"));
  EXPECT_TRUE(warned(parsed(R"("checkpoint": {"use_node_local_storage": true})"), "use_node_local_storage"));
  EXPECT_TRUE(warned(config, "zero_optimization.stage3_allgather_sequential"));
  EXPECT_TRUE(warned(config, "zero_optimization.stage3_use_all_reduce_for_fetch_params"));
  EXPECT_TRUE(warned(config, "zero_optimization.stage3_module_granularity_threshold"));
  EXPECT_TRUE(warned(config, "optimizer.legacy_fusion"));
  EXPECT_TRUE(warned(config, "disable_allgather"));
}

}  // namespace
}  // namespace deepscale
