#include "engine/engine_options.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/hash.h"
#include "config/json_text.h"
#include "engine/plan_sizes.h"
#include "memory/file_shares.h"
#include "memory/io_calibration.h"
#include "platform/resources.h"

namespace deepscale {
namespace {

LossScaler::Options loss_scale_options(const Fp16Options& fp16) {
  LossScaler::Options options;
  if (!fp16.enabled) return options;
  options.dynamic = fp16.loss_scale == 0;
  options.initial_scale =
      options.dynamic ? std::ldexp(1.0, static_cast<int>(fp16.initial_scale_power)) : fp16.loss_scale;
  options.window = fp16.loss_scale_window;
  options.hysteresis = fp16.hysteresis;
  options.consecutive_hysteresis = fp16.consecutive_hysteresis;
  options.min_scale = fp16.min_loss_scale;
  return options;
}

GradReducer::Options reduction_options(const Config& config) {
  GradReducer::Options options;
  if (config->communication_data_type) options.communication_dtype = scalar_type_of(*config->communication_data_type);
  if (config->data_types.grad_accum_dtype) {
    options.accumulation_dtype = scalar_type_of(*config->data_types.grad_accum_dtype);
  }
  options.average = config->gradient_allreduce_op == GradientReduceOp::kMean;
  options.prescale = config->prescale_gradients;
  options.predivide_factor = config->gradient_predivide_factor;
  options.overlap = config->zero.overlap_comm.value_or(false);
  return options;
}

void set_state_dtypes(const Config& config, NativeOptimizerOptions& optimizer) {
  if (config->fp16.enabled && config->fp16.fp16_master_weights_and_grads) optimizer.master_dtype = at::kHalf;
  if (config->bf16.enabled && config->bf16.bf16_master_weights_and_grads) optimizer.master_dtype = at::kBFloat16;
  if (config->bf16.enabled && config->bf16.bf16_optimizer_states) optimizer.state_dtype = at::kBFloat16;
  if (optimizer.states_as_master) optimizer.state_dtype = optimizer.master_dtype;
}

/// What decides which collectives run, and on what.
std::vector<SharedSetting> shared_settings(const Config& config) {
  config::Json all = config::Json::parse(config.to_json());
  for (const char* offload : {"offload_param", "offload_optimizer"}) {
    auto& section = all["zero_optimization"][offload];
    if (section.is_object()) section.erase("nvme_path");  // each machine has its own
  }
  std::vector<SharedSetting> settings;
  for (const char* key :
       {"zero_optimization", "bf16", "fp16", "data_types", "communication_data_type", "gradient_accumulation_steps",
        "gradient_clipping", "gradient_predivide_factor", "prescale_gradients"}) {
    settings.push_back({key, all.contains(key) ? fnv1a(all.at(key).dump()) : 0});
  }
  return settings;
}

FileTierOptions file_tier_options(const AioOptions& aio, const std::string& folder, bool pin) {
  FileTierOptions options;
  options.folder = folder;
  options.pin = pin;
  options.pool_bytes = 0;
  options.queue.reset();
  if (!aio.block_size && !aio.queue_depth) return options;
  const AsyncFileOptions usual;
  constexpr int64_t kMost = 1 << 20;  // of each factor, lest the product overflow
  const int64_t depth = std::min(aio.queue_depth.value_or(usual.depth), kMost);
  options.queue =
      queue_options_near(depth * std::min(aio.intra_op_parallelism, kMost), aio.block_size.value_or(usual.block_bytes));
  return options;
}

void place_optimizer_in_file(const Config& config, EngineOptions& options) {
  const OffloadOptimizerOptions& offload = *config->zero.offload_optimizer;
  options.optimizer_placement = at::Device(at::kCPU);
  options.optimizer_placed_share = offload.ratio;
  options.optimizer_file = file_tier_options(config->aio, *offload.nvme_path, offload.pin_memory);
  options.optimizer_block_numel = std::min(kStateBlockNumel, config->zero.sub_group_size);
  options.optimizer_file->pool_bytes = buffers_bytes(offload.buffer_count, options.optimizer_block_numel, 4);
}

}  // namespace

std::optional<FileTierOptions> param_file_options(const Config& config) {
  if (config->zero.param_device() != OffloadDevice::kNvme) return std::nullopt;
  const OffloadParamOptions& offload = *config->zero.offload_param;
  FileTierOptions options = file_tier_options(config->aio, *offload.nvme_path, offload.pin_memory);
  constexpr int64_t kWidest = 4;  // bytes of an element
  // Configurations ask for buffers of many GB, which the original pins; a drive is kept busy by far less.
  options.pool_bytes = std::min(buffers_bytes(offload.buffer_count, offload.buffer_size, kWidest), usual_pool_bytes());
  return options;
}

FileTier open_tier(const FileTierOptions& options, std::string_view section) {
  try {
    return FileTier(options);
  } catch (const IoError& error) {
    ds_throw<IoError>("zero_optimization.{}.nvme_path: {}", section, error.what());
  }
}

at::ScalarType scalar_type_of(FloatType type) {
  switch (type) {
    case FloatType::kFp16:
      return at::kHalf;
    case FloatType::kBf16:
      return at::kBFloat16;
    default:
      return at::kFloat;
  }
}

EngineOptions make_engine_options(const Config& config, const PlanGroups& groups,
                                  const NativeOptimizerOptions& optimizer) {
  EngineOptions options;
  options.groups = groups;
  options.plan = plan_for_buckets(config->zero, groups);
  options.bucket_numel = config->zero.reduce_bucket_size;
  options.reduction = reduction_options(config);
  options.schedule.prefetch_numel = config->zero.stage3_prefetch_bucket_size;
  options.schedule.max_live_numel = config->zero.stage3_max_live_parameters;
  options.schedule.max_reuse_distance_numel = config->zero.stage3_max_reuse_distance;
  options.loss_scale = loss_scale_options(config->fp16);
  options.optimizer = optimizer;
  options.gradient_clipping = config->gradient_clipping;
  options.skip_nonfinite = !config->bf16.enabled || config->bf16.check_grad_overflow;
  if (config->zero.optimizer_device() == OffloadDevice::kCpu) {
    options.optimizer_placement = at::Device(at::kCPU);
    options.optimizer_placed_share = config->zero.offload_optimizer->ratio;
  }
  if (config->zero.optimizer_device() == OffloadDevice::kNvme) place_optimizer_in_file(config, options);
  options.param_file = param_file_options(config);
  if (options.param_file) {
    const int64_t wanted = config->zero.offload_param->max_in_cpu, usual = OffloadParamOptions().max_in_cpu;
    const int64_t element = config->fp16.enabled || config->bf16.enabled ? 2 : 4;
    options.param_resident_numel = resident_share_numel(wanted, usual, process_memory_facts().available_bytes, element);
    options.param_resident_adapts = wanted == usual;
  }
  set_state_dtypes(config, options.optimizer);
  options.shared_settings = shared_settings(config);
  return options;
}

}  // namespace deepscale
