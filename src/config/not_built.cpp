// Features that are parsed and validated but do not exist yet. Switched on, they are refused by name.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>

#include "config/resolve.h"

namespace deepscale::config {
namespace {

using O = Options;

constexpr std::string_view kSwitchOff = "remove it or set it to false";
constexpr std::string_view kRemove = "remove the section";

bool optimizer_is(const O& o, std::initializer_list<std::string_view> names) {
  if (!o.optimizer.type) return false;
  std::string type = *o.optimizer.type;
  std::transform(type.begin(), type.end(), type.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return std::find(names.begin(), names.end(), type) != names.end();
}

bool any_compression(const O& o) {
  const CompressionOptions& c = o.compression_training;
  return c.layer_reduction.enabled || c.weight_quantization.shared_parameters.enabled ||
         c.activation_quantization.shared_parameters.enabled || c.sparse_pruning.shared_parameters.enabled ||
         c.row_pruning.shared_parameters.enabled || c.head_pruning.shared_parameters.enabled ||
         c.channel_pruning.shared_parameters.enabled;
}

std::vector<NotBuilt> zero_rows() {
  return {
      {"zero_optimization.offload_optimizer.super_offload", kSwitchOff,
       [](const O& o) { return o.zero.offload_optimizer && o.zero.offload_optimizer->super_offload; }},
      {"zero_optimization.zenflow", kRemove, [](const O& o) { return o.zero.zenflow.has_value(); }},
      {"zero_optimization.zero_quantized_weights", kSwitchOff,
       [](const O& o) { return o.zero.zero_quantized_weights; }},
      {"zero_optimization.zero_quantized_nontrainable_weights", kSwitchOff,
       [](const O& o) { return o.zero.zero_quantized_nontrainable_weights; }},
      {"zero_optimization.zero_quantized_gradients", kSwitchOff,
       [](const O& o) { return o.zero.zero_quantized_gradients; }},
      {"zero_optimization.zeropp_loco_param", kRemove, [](const O& o) { return o.zero.zeropp_loco_param.has_value(); }},
      {"aio.use_gds", kSwitchOff, [](const O& o) { return o.aio.use_gds; }},
  };
}

std::vector<NotBuilt> training_rows() {
  return {
      {"optimizer.type OneBitAdam, ZeroOneAdam or OneBitLamb", "use Adam, AdamW or Lamb",
       [](const O& o) {
         return optimizer_is(o, {"onebitadam", "zerooneadam", "onebitlamb"});
       }},
      {"optimizer.type MuAdam, MuAdamW or MuSGD", "use Adam, AdamW or SGD",
       [](const O& o) {
         return optimizer_is(o, {"muadam", "muadamw", "musgd"});
       }},
      {"checkpoint.parallel_write.pipeline_stage", kSwitchOff,
       [](const O& o) { return o.checkpoint.parallel_write.pipeline_stage; }},
      {"datastates_ckpt", kRemove, [](const O& o) { return o.datastates_ckpt.text != "null"; }},
      {"nebula", kSwitchOff, [](const O& o) { return o.nebula.enabled; }},
      {"amp", "use fp16, bf16 or torch_autocast", [](const O& o) { return o.amp.enabled; }},
      {"msamp", "use fp16, bf16 or torch_autocast", [](const O& o) { return o.msamp.enabled; }},
      {"sparse_gradients", kSwitchOff, [](const O& o) { return o.sparse_gradients; }},
      {"graph_harvesting", kSwitchOff, [](const O& o) { return o.graph_harvesting; }},
      {"compile.deepcompile", kSwitchOff, [](const O& o) { return o.compile.deepcompile; }},
      {"compile.autoep_non_moe", kSwitchOff, [](const O& o) { return o.compile.autoep_non_moe; }},
      {"autotuning", kSwitchOff, [](const O& o) { return o.autotuning.enabled; }},
      {"data_efficiency", kSwitchOff, [](const O& o) { return o.data_efficiency.enabled; }},
      {"curriculum_learning", kSwitchOff, [](const O& o) { return o.curriculum_learning.enabled; }},
      {"progressive_layer_drop", kSwitchOff, [](const O& o) { return o.progressive_layer_drop.enabled; }},
      {"eigenvalue", kSwitchOff, [](const O& o) { return o.eigenvalue.enabled; }},
      {"quantize_training", kSwitchOff, [](const O& o) { return o.quantize_training.enabled; }},
      {"compression_training", "switch every technique off", any_compression},
  };
}

std::vector<NotBuilt> parallel_rows() {
  return {
      {"pipeline.stages", "set it to 1 or \"auto\"", [](const O& o) { return o.pipeline.stages.value_or(1) > 1; }},
      {"tensor_parallel.autotp_size", "set it to 0",
       [](const O& o) { return o.tensor_parallel.autotp_size > 1 || o.tensor_parallel.tp.tp_size > 1; }},
      {"expert_parallel", kSwitchOff, [](const O& o) { return o.expert_parallel.enabled; }},
      {"use_data_before_expert_parallelism", kSwitchOff,
       [](const O& o) { return o.use_data_before_expert_parallelism; }},
      {"sequence_parallel_size",
       "set it to 1, and use mpu= from UlyssesSPAttentionHF.register_with_transformers(...) for Ulysses",
       [](const O& o) { return o.sequence_parallel_size.value_or(1) > 1; }},
      {"hybrid_engine", kSwitchOff, [](const O& o) { return o.hybrid_engine.enabled; }},
      {"sparse_attention", kRemove, [](const O& o) { return o.sparse_attention.has_value(); }},
      {"inference.tensor_parallel.tp_size", "set it to 1",
       [](const O& o) { return o.inference && o.inference->tensor_parallel.tp_size > 1; }},
      {"inference.replace_with_kernel_inject", kSwitchOff,
       [](const O& o) { return o.inference && o.inference->replace_with_kernel_inject; }},
  };
}

std::vector<NotBuilt> all_rows() {
  std::vector<NotBuilt> rows = zero_rows();
  for (const auto& more : {training_rows(), parallel_rows()}) rows.insert(rows.end(), more.begin(), more.end());
  return rows;
}

}  // namespace

const std::vector<NotBuilt>& not_built() {
  static const std::vector<NotBuilt> kRows = all_rows();
  return kRows;
}

void check_not_built(const Options& options, Problems& problems) {
  for (const NotBuilt& row : not_built()) {
    if (row.switched_on(options)) problems.error(row.path, fmt::format("not built yet; {}", row.remedy));
  }
}

}  // namespace deepscale::config
