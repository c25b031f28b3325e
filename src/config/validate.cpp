// Contradictions between options, and defaults that depend on other options.
#include <fmt/format.h>

#include <algorithm>

#include "config/resolve.h"
#include "platform/files.h"

namespace deepscale::config {
namespace {

using O = Options;

void drop_auto(RawJson& params, const std::string& path, ParseMode mode, Problems& problems) {
  const Json given = parse_json_text(params.text);
  if (!given.is_object()) {
    problems.error(path, fmt::format("must be an object of arguments, found {}", show(given)));
    params = {};
    return;
  }
  Json kept = Json::object();
  for (const auto& [key, value] : given.items()) {
    if (value != "auto") {
      kept[key] = value;
    } else if (mode == ParseMode::kTraining) {
      problems.warn(join_path(path, key), "is still \"auto\": nothing replaced it, so its default applies");
    }
  }
  params.text = json_to_text(kept);
}

void check_precision(const O& o, Problems& problems) {
  if (o.fp16.enabled && o.bf16.enabled) {
    problems.error("fp16.enabled", "fp16 and bf16 cannot both be enabled; set bf16.enabled or fp16.enabled to false");
  }
  if (o.torch_autocast.enabled && (o.fp16.enabled || o.bf16.enabled)) {
    problems.error("torch_autocast.enabled",
                   fmt::format("torch_autocast keeps parameters in fp32 and cannot be combined "
                               "with {0}; set {0}.enabled to false",
                               o.fp16.enabled ? "fp16" : "bf16"));
  }
  if (o.torch_autocast.dtype == FloatType::kFp32) {
    problems.error("torch_autocast.dtype", "must be \"bf16\" or \"fp16\", found \"fp32\"");
  }
  const FloatType model = o.fp16.enabled ? FloatType::kFp16 : (o.bf16.enabled ? FloatType::kBf16 : FloatType::kFp32);
  if (o.data_types.param_dtype && *o.data_types.param_dtype != model) {
    problems.error("data_types.param_dtype",
                   fmt::format("disagrees with the enabled mode ({}); enable the mode it names, or remove it",
                               o.fp16.enabled ? "fp16" : (o.bf16.enabled ? "bf16" : "neither fp16 nor bf16")));
  }
}

void check_loss_scale(const O& o, Problems& problems) {
  if (!o.fp16.enabled || o.fp16.loss_scale != 0) return;
  if (o.fp16.loss_scale_window <= 0) {
    problems.error("fp16.loss_scale_window", fmt::format("must be greater than 0 when the loss scale is dynamic "
                                                         "(loss_scale 0), found {}",
                                                         o.fp16.loss_scale_window));
  }
  if (o.fp16.min_loss_scale <= 0) {
    problems.error("fp16.min_loss_scale",
                   fmt::format("must be greater than 0 when the loss scale is dynamic (loss_scale 0), found {:g}",
                               o.fp16.min_loss_scale));
  }
}

void check_master_weights(const O& o, Problems& problems) {
  const bool sharded = o.zero.stage > 0;
  const auto needs_zero = [&](bool set, std::string_view path) {
    if (set && !sharded) {
      problems.error(path, "needs ZeRO: set zero_optimization.stage to 1, 2 or 3, or set it to false");
    }
  };
  needs_zero(o.fp16.fp16_master_weights_and_grads, "fp16.fp16_master_weights_and_grads");
  needs_zero(o.bf16.bf16_master_weights_and_grads, "bf16.bf16_master_weights_and_grads");
  needs_zero(o.bf16.bf16_optimizer_states, "bf16.bf16_optimizer_states");
  if (o.fp16.fp16_master_weights_and_grads && sharded && o.zero.optimizer_device() == OffloadDevice::kNone) {
    problems.error("fp16.fp16_master_weights_and_grads",
                   "needs optimizer states on the host: set zero_optimization.offload_optimizer.device to \"cpu\"");
  }
  if (o.bf16.bf16_optimizer_states && !o.bf16.bf16_master_weights_and_grads) {
    problems.error("bf16.bf16_optimizer_states", "needs bf16.bf16_master_weights_and_grads to be true");
  }
  if (o.fp16.fp16_master_weights_and_grads && o.bf16.bf16_master_weights_and_grads) {
    problems.error("fp16.fp16_master_weights_and_grads", "cannot be combined with bf16.bf16_master_weights_and_grads");
  }
}

void check_zero(const O& o, Problems& problems) {
  const ZeroOptions& zero = o.zero;
  if (zero.legacy_stage1) {
    problems.error("zero_optimization.legacy_stage1", "the old stage 1 no longer exists; set it to false");
  }
  if ((zero.stage == 1 || zero.stage == 2) && zero.allgather_bucket_size % 2 != 0) {
    problems.error("zero_optimization.allgather_bucket_size",
                   fmt::format("must be even in stages 1 and 2, found {}; add 1", zero.allgather_bucket_size));
  }
  if (zero.offload_optimizer && zero.offload_optimizer->ratio < 1.0 && zero.stage != 3) {
    problems.error("zero_optimization.offload_optimizer.ratio",
                   fmt::format("below 1 works only in stage 3, found {:g} in stage {}; set it to 1",
                               zero.offload_optimizer->ratio, zero.stage));
  }
  if (!zero.compute_grad_norm) {
    std::string_view reason;
    if (zero.stage != 1 && zero.stage != 2) reason = "works only in stages 1 and 2";
    if (o.gradient_clipping > 0) reason = "needs gradient_clipping 0";
    if (zero.optimizer_device() != OffloadDevice::kNone) reason = "does not work with offload_optimizer";
    if (zero.zenflow) reason = "does not work with zenflow";
    if (!reason.empty()) {
      problems.error("zero_optimization.compute_grad_norm", fmt::format("false {}; set it to true", reason));
    }
  }
}

void check_offload(const O& o, Problems& problems) {
  const ZeroOptions& zero = o.zero;
  const auto needs_path = [&](const std::optional<std::string>& path, std::string_view section) {
    if (path && !path->empty()) return;
    problems.error(fmt::format("{}.nvme_path", section),
                   fmt::format("is required for device \"nvme\": name a folder{}", path ? ", found \"\"" : ""));
  };
  if (zero.param_device() == OffloadDevice::kNvme) {
    needs_path(zero.offload_param->nvme_path, "zero_optimization.offload_param");
  }
  if (zero.optimizer_device() == OffloadDevice::kNvme) {
    needs_path(zero.offload_optimizer->nvme_path, "zero_optimization.offload_optimizer");
  }
  // Programs switch the stage and leave the rest (TRL, DeepSpeed-Chat), so these are no errors.
  if (zero.param_device() != OffloadDevice::kNone && zero.stage != 3) {
    problems.warn("zero_optimization.offload_param",
                  fmt::format("has no effect in stage {}: only stage 3 shards parameters", zero.stage));
  }
  if (zero.optimizer_device() == OffloadDevice::kCpu && zero.stage == 0) {
    problems.warn("zero_optimization.offload_optimizer", "has no effect in stage 0: set the stage to 1, 2 or 3");
  }
}

void check_zenflow(const O& o, Problems& problems) {
  if (!o.zero.zenflow) return;
  const ZenflowOptions& zenflow = *o.zero.zenflow;
  if (o.zero.optimizer_device() != OffloadDevice::kCpu) {
    problems.error("zero_optimization.zenflow", "needs offload_optimizer.device \"cpu\"");
  }
  if (zenflow.select_strategy == "auto") return;
  if (!zenflow.select_interval) {
    problems.error(
        "zero_optimization.zenflow.select_interval",
        fmt::format("must be a number with select_strategy \"{}\", found \"auto\"", zenflow.select_strategy));
  } else if (zenflow.update_interval && *zenflow.select_interval < *zenflow.update_interval) {
    problems.error("zero_optimization.zenflow.select_interval",
                   fmt::format("must not be less than update_interval ({}), found {}", *zenflow.update_interval,
                               *zenflow.select_interval));
  }
}

void check_groups(const O& o, int ranks, Problems& problems) {
  const int64_t mics = o.zero.mics_shard_size;
  const int64_t hpz = o.zero.zero_hpz_partition_size;
  const auto check = [&](int64_t size, std::string_view path) {
    if (o.zero.stage != 3) {
      problems.warn(path, fmt::format("has no effect in stage {}: only stage 3 shards parameters", o.zero.stage));
    } else if (ranks % size != 0) {
      problems.error(path, fmt::format("must divide the number of data-parallel ranks ({}), found {}", ranks, size));
    }
  };
  if (mics == 0) {
    problems.error("zero_optimization.mics_shard_size", "must be -1 (off) or at least 1, found 0");
  } else if (mics > 0) {
    check(mics, "zero_optimization.mics_shard_size");
  }
  if (hpz > 1) check(hpz, "zero_optimization.zero_hpz_partition_size");
  if (mics > 0 && hpz > 1) {
    problems.error("zero_optimization.zero_hpz_partition_size",
                   "cannot be combined with mics_shard_size; set one of them to its default");
  }
}

void check_gradients(const O& o, Problems& problems) {
  const bool sum = o.gradient_allreduce_op == GradientReduceOp::kSum;
  const auto no_sum = [&](bool reason, std::string_view where) {
    if (sum && reason) {
      problems.error("gradient_allreduce_op", fmt::format("\"sum\" is not supported with {}; use \"mean\"", where));
    }
  };
  no_sum(o.zero.stage == 3, "ZeRO stage 3");
  no_sum(o.zero.zenflow.has_value(), "zero_optimization.zenflow");
  no_sum(o.compile.deepcompile, "compile.deepcompile");
  if (o.zero.reduce_scatter && o.zero.stage >= 2 && !sum) {
    if (o.prescale_gradients) {
      problems.error("prescale_gradients",
                     "cannot be combined with zero_optimization.reduce_scatter in stages 2 and 3; "
                     "set one of them to false");
    }
    if (o.gradient_predivide_factor != 1.0) {
      problems.error("gradient_predivide_factor",
                     fmt::format("must be 1 with zero_optimization.reduce_scatter in stages 2 and 3, found {:g}",
                                 o.gradient_predivide_factor));
    }
  }
  if (!o.managed_gradient_accumulation) {
    if (o.zero.overlap_comm.value_or(false) && o.zero.stage < 2) {
      problems.error(
          "managed_gradient_accumulation",
          fmt::format("false works with zero_optimization.overlap_comm only in stages 2 and 3, found stage {}",
                      o.zero.stage));
    }
    if (o.compile.deepcompile) {
      problems.error("managed_gradient_accumulation", "false does not work with compile.deepcompile");
    }
  }
}

void check_checkpointing(const O& o, Problems& problems) {
  const ActivationCheckpointingOptions& activations = o.activation_checkpointing;
  if (activations.contiguous_memory_optimization) {
    if (!activations.partition_activations) {
      problems.error("activation_checkpointing.contiguous_memory_optimization",
                     "needs activation_checkpointing.partition_activations to be true");
    }
    if (!activations.number_checkpoints) {
      problems.error("activation_checkpointing.contiguous_memory_optimization",
                     "needs activation_checkpointing.number_checkpoints");
    }
  }
}

void check_compression(const O& o, Problems& problems) {
  const CompressionOptions& c = o.compression_training;
  const std::string base = "compression_training.";
  for (const auto& [name, group] : c.weight_quantization.different_groups) {
    const std::string path = base + "weight_quantization.different_groups." + name + ".params.";
    if (!group.params.start_bits) problems.error(path + "start_bits", "is required");
    if (!group.params.target_bits) problems.error(path + "target_bits", "is required");
  }
  for (const auto& [name, group] : c.activation_quantization.different_groups) {
    const std::string path = base + "activation_quantization.different_groups." + name + ".params.bits";
    if (!group.params.bits || (*group.params.bits != 4 && *group.params.bits != 8)) {
      problems.error(path, fmt::format("must be 4 or 8, found {}",
                                       group.params.bits ? std::to_string(*group.params.bits) : "nothing"));
    }
  }
  const auto& heads = c.head_pruning.shared_parameters;
  if (heads.enabled && !heads.num_heads) {
    problems.error(base + "head_pruning.shared_parameters.num_heads", "is required");
  }
}

void check_quantized_weight(const QuantizedWeightOptions& weight, const std::string& path, Problems& problems) {
  if (weight.num_bits != 4 && weight.num_bits != 8) {
    problems.error(path + ".num_bits", fmt::format("must be 4 or 8, found {}", weight.num_bits));
  }
  if (weight.group_dim > 1) {
    problems.error(path + ".group_dim", fmt::format("must be 0 or 1, found {}", weight.group_dim));
  }
}

void check_quantization(const O& o, Problems& problems) {
  if (!o.weight_quantization) return;
  for (const auto& [name, weight] : o.weight_quantization->post_init_quant) {
    check_quantized_weight(weight, "weight_quantization.post_init_quant." + name, problems);
  }
  if (o.weight_quantization->quantized_initialization) {
    check_quantized_weight(*o.weight_quantization->quantized_initialization,
                           "weight_quantization.quantized_initialization", problems);
  }
}

void check_data(const O& o, Problems& problems) {
  const RandomLtdOptions& ltd = o.data_efficiency.data_routing.random_ltd;
  if (ltd.random_ltd_layer_num && *ltd.random_ltd_layer_num != static_cast<int64_t>(ltd.random_ltd_layer_id.size())) {
    problems.error("data_efficiency.data_routing.random_ltd.random_ltd_layer_id",
                   fmt::format("must have random_ltd_layer_num ({}) entries, found {}", *ltd.random_ltd_layer_num,
                               ltd.random_ltd_layer_id.size()));
  }
  if (ltd.layer_token_lr_schedule.enabled) {
    problems.error("data_efficiency.data_routing.random_ltd.layer_token_lr_schedule.enabled",
                   "is not supported; set it to false");
  }
  const DynamicBatchingOptions& batching = o.data_efficiency.data_sampling.dynamic_batching;
  if (batching.enabled && !batching.max_tokens) {
    problems.error("data_efficiency.data_sampling.dynamic_batching.max_tokens", "is required");
  }
}

void warn_doubtful(const O& o, Problems& problems) {
  if (o.vocabulary_size && *o.vocabulary_size % 8 != 0) {
    problems.warn("vocabulary_size",
                  fmt::format("{} is not a multiple of 8, which matrix units prefer", *o.vocabulary_size));
  }
  const Json params = parse_json_text(o.optimizer.params.text);
  if (params.is_object() && params.contains("max_grad_norm")) {
    problems.warn("optimizer.params.max_grad_norm", "is not a parameter of the optimizer; use gradient_clipping");
  }
  if (o.zero.elastic_checkpoint) {
    problems.warn("zero_optimization.elastic_checkpoint", "has no effect; remove it");
  }
  if (o.zero.stage3_use_all_reduce_for_fetch_params) {
    problems.warn("zero_optimization.stage3_use_all_reduce_for_fetch_params",
                  "has no effect: parameters are gathered by all-gather, or read where they are; remove it");
  }
  if (o.zero.stage3_allgather_sequential) {
    problems.warn("zero_optimization.stage3_allgather_sequential",
                  "has no effect: units are gathered one by one anyway; remove it");
  }
  if (o.zero.stage3_module_granularity_threshold > 0) {
    problems.warn("zero_optimization.stage3_module_granularity_threshold",
                  "has no effect: name modules to gather as one unit in leaf_module, or raise "
                  "stage3_param_persistence_threshold");
  }
  if (o.checkpoint.use_node_local_storage) {
    problems.warn("checkpoint.use_node_local_storage",
                  "has no effect: only rank 0 writes what all ranks share, so save to storage that all machines see");
  }
  if (o.optimizer.legacy_fusion) problems.warn("optimizer.legacy_fusion", "has no effect; remove it");
  if (o.disable_allgather) problems.warn("disable_allgather", "has no effect; remove it");
}

}  // namespace

void resolve_defaults(Options& options, ParseMode mode, Problems& problems) {
  if (!options.zero.overlap_comm) options.zero.overlap_comm = options.zero.stage == 3;
  const auto expand = [](auto& section) {
    if (section && section->nvme_path) section->nvme_path = expanded_home(*section->nvme_path);
  };
  expand(options.zero.offload_param);
  expand(options.zero.offload_optimizer);
  drop_auto(options.optimizer.params, "optimizer.params", mode, problems);
  drop_auto(options.scheduler.params, "scheduler.params", mode, problems);
}

void check_options(const Options& options, int data_parallel_size, Problems& problems) {
  check_precision(options, problems);
  check_loss_scale(options, problems);
  check_master_weights(options, problems);
  check_zero(options, problems);
  check_offload(options, problems);
  check_zenflow(options, problems);
  check_groups(options, data_parallel_size, problems);
  check_gradients(options, problems);
  check_checkpointing(options, problems);
  check_compression(options, problems);
  check_quantization(options, problems);
  check_data(options, problems);
  warn_doubtful(options, problems);
}

}  // namespace deepscale::config
