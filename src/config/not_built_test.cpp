#include <map>

#include "config/resolve.h"
#include "config/test_support.h"

namespace deepscale {
namespace {

// For every row of the list: settings that switch the feature on.
const std::map<std::string_view, std::string_view>& switched_on() {
  static const std::map<std::string_view, std::string_view> kSettings = {
      {"zero_optimization.offload_optimizer.super_offload",
       R"("zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "super_offload": true}})"},
      {"zero_optimization.zenflow",
       R"("zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}, "zenflow": {}})"},
      {"zero_optimization.zero_quantized_weights", R"("zero_optimization": {"zero_quantized_weights": true})"},
      {"zero_optimization.zero_quantized_nontrainable_weights",
       R"("zero_optimization": {"zero_quantized_nontrainable_weights": true})"},
      {"zero_optimization.zero_quantized_gradients", R"("zero_optimization": {"zero_quantized_gradients": true})"},
      {"zero_optimization.zeropp_loco_param", R"("zero_optimization": {"zeropp_loco_param": {"err_beta": 0.8}})"},
      {"aio.use_gds", R"("aio": {"use_gds": true})"},
      {"optimizer.type OneBitAdam, ZeroOneAdam or OneBitLamb", R"("optimizer": {"type": "OneBitAdam"})"},
      {"optimizer.type MuAdam, MuAdamW or MuSGD", R"("optimizer": {"type": "musgd"})"},
      {"checkpoint.parallel_write.pipeline_stage", R"("checkpoint": {"parallel_write": {"pipeline_stage": true}})"},
      {"datastates_ckpt", R"("datastates_ckpt": {"host_cache_size": 16})"},
      {"nebula", R"("nebula": {"enabled": true, "persistent_storage_path": "/x"})"},
      {"amp", R"("amp": {"enabled": true, "opt_level": "O1"})"},
      {"msamp", R"("msamp": {"enabled": true})"},
      {"sparse_gradients", R"("sparse_gradients": true)"},
      {"graph_harvesting", R"("graph_harvesting": true)"},
      {"compile.deepcompile", R"("compile": {"deepcompile": true, "passes": ["z1"]})"},
      {"compile.autoep_non_moe", R"("compile": {"autoep_non_moe": true})"},
      {"autotuning", R"("autotuning": {"enabled": true})"},
      {"data_efficiency", R"("data_efficiency": {"enabled": true})"},
      {"curriculum_learning", R"("curriculum_learning": {"enabled": true, "curriculum_type": "seqlen"})"},
      {"progressive_layer_drop", R"("progressive_layer_drop": {"enabled": true})"},
      {"eigenvalue", R"("eigenvalue": {"enabled": true})"},
      {"quantize_training", R"("quantize_training": {"enabled": true, "quantize_bits": {"start_bits": 16}})"},
      {"compression_training", R"("compression_training": {"row_pruning": {"shared_parameters": {"enabled": true}}})"},
      {"pipeline.stages", R"("pipeline": {"stages": 2})"},
      {"tensor_parallel.autotp_size", R"("tensor_parallel": {"autotp_size": 2})"},
      {"expert_parallel", R"("expert_parallel": {"enabled": true, "top_k": 2})"},
      {"use_data_before_expert_parallelism", R"("use_data_before_expert_parallelism": true)"},
      {"sequence_parallel_size", R"("sequence_parallel_size": 2)"},
      {"hybrid_engine", R"("hybrid_engine": {"enabled": true})"},
      {"sparse_attention", R"("sparse_attention": {"mode": "fixed"})"},
      {"inference.tensor_parallel.tp_size", R"("inference": {"tp": {"tp_size": 2}})"},
      {"inference.replace_with_kernel_inject", R"("inference": {"kernel_inject": true})"},
  };
  return kSettings;
}

TEST(NotBuilt, EveryFeatureIsRefusedByNameWhenItIsSwitchedOn) {
  for (const config::NotBuilt& row : config::not_built()) {
    const auto setting = switched_on().find(row.path);
    ASSERT_NE(setting, switched_on().end()) << "no test setting for " << row.path;
    EXPECT_CONTAINS(error_of(setting->second), std::string(row.path) + ": not built yet; ");
  }
}

TEST(NotBuilt, SectionsThatAreSwitchedOffPass) {
  const Config config =
      parsed(R"("tensorboard": {"enabled": false, "job_name": "x"}, "hybrid_engine": {"enabled": false},
      "flops_profiler": {"enabled": false, "profile_step": 5}, "autotuning": {"enabled": false, "fast": false},
      "elasticity": {"enabled": false}, "data_efficiency": {"enabled": false, "data_sampling": {"num_epochs": 1}},
      "compression_training": {"weight_quantization": {"shared_parameters": {"enabled": false},
        "different_groups": {"wq1": {"params": {"start_bits": 1, "target_bits": 1, "quantization_period": 0},
        "modules": ["attention.self"]}}}},
      "tensor_parallel": {"autotp_size": 1}, "pipeline": {"stages": 1}, "compile": {"deepcompile": false},
      "amp": {"enabled": false, "opt_level": "O1"}, "expert_parallel": {"enabled": false, "preset_model": "mixtral"},
      "weight_quantization": {"post_init_quant": {}}, "sequence_parallel_size": 1, "sparse_gradients": false,
      "zero_optimization": {"stage": 3, "zero_quantized_weights": false, "mics_shard_size": 2, "zenflow": null})",
             4);
  EXPECT_TRUE(config.warnings().empty()) << config.warnings().front();
  EXPECT_EQ(config->zero.mics_shard_size, 2);
  EXPECT_EQ(config->compression_training.weight_quantization.different_groups.at("wq1").params.start_bits, 1);
  EXPECT_CONTAINS(config.to_json(), R"("amp":{"enabled":false,"opt_level":"O1"})");
}

TEST(NotBuilt, SectionsAreValidatedEvenWhenTheyAreOff) {
  EXPECT_CONTAINS(error_of(R"("tensorboard": {"enabled": false, "jobname": "x"})"), "did you mean 'job_name'?");
  EXPECT_CONTAINS(error_of(R"("autotuning": {"metric": "speed"})"), "autotuning.metric");
  EXPECT_CONTAINS(error_of(R"("elasticity": {"micro_batch_sizes": [2, 0]})"), "elasticity.micro_batch_sizes[1]");
  EXPECT_CONTAINS(error_of(R"("sparse_attention": {"mode": "wild"})"), "sparse_attention.mode");
  EXPECT_CONTAINS(error_of(R"("compile": {"passes": ["z2"]})"), "compile.passes[0]");
  EXPECT_CONTAINS(
      error_of(R"("tensor_parallel": {"partition_config": {"layer_specs": [{"partition_type": "diagonal"}]}})"),
      "tensor_parallel.partition_config.layer_specs[0].partition_type");
}

}  // namespace
}  // namespace deepscale
