// The option structs of `zero_optimization` and `aio` (see options.h).
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

namespace deepscale {

/// A limit that is never reached; written as 9223372036854775807 (Python's sys.maxsize).
inline constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();

/// A JSON value kept as text, because somebody else (a constructor, a tool) reads it.
struct RawJson {
  std::string text = "{}";
};

/// Where a state lives.
enum class OffloadDevice { kNone, kCpu, kNvme };

/// `zero_optimization.offload_param`.
struct OffloadParamOptions {
  OffloadDevice device = OffloadDevice::kNone;
  std::optional<std::string> nvme_path;
  int64_t buffer_count = 5;
  int64_t buffer_size = 100'000'000;
  int64_t max_in_cpu = 1'000'000'000;
  bool pin_memory = true;
};

/// `zero_optimization.offload_optimizer`.
struct OffloadOptimizerOptions {
  OffloadDevice device = OffloadDevice::kNone;
  std::optional<std::string> nvme_path;
  int64_t buffer_count = 4;
  bool pin_memory = true;
  bool pipeline_read = false;
  bool pipeline_write = false;
  bool fast_init = false;
  double ratio = 1.0;
  bool super_offload = false;
  double cpuadam_cores_perc = 0.8;
};

/// `zero_optimization.zenflow`.
struct ZenflowOptions {
  double topk_ratio = 0.1;
  std::string select_strategy = "auto";
  std::optional<int64_t> select_interval;  ///< nothing = "auto"
  std::optional<int64_t> update_interval;  ///< nothing = "auto"
  bool overlap_step = false;
  bool offload = false;
  double auto_ratio = 0.99;
  int64_t full_warm_up_rounds = 0;
  double pt_reserved_cores_perc = 0.5;
};

/// `zero_optimization.leaf_module`: modules that are gathered and released as one unit.
struct LeafModuleOptions {
  std::vector<std::string> classes = {"transformers.models.mixtral.modeling_mixtral.MixtralSparseMoeBlock",
                                      "transformers.models.qwen2_moe.modeling_qwen2_moe.Qwen2MoeSparseMoeBlock",
                                      "transformers.models.qwen3_moe.modeling_qwen3_moe.Qwen3MoeSparseMoeBlock"};
  std::vector<std::string> names;
  std::vector<std::string> name_suffixes;
};

/// `zero_optimization.zeropp_loco_param`.
struct LocoOptions {
  double err_beta = 0.8;
  int64_t reset_T = 1024;
};

/// `zero_optimization`.
struct ZeroOptions {
  int64_t stage = 0;
  bool contiguous_gradients = true;
  bool reduce_scatter = true;
  int64_t reduce_bucket_size = 500'000'000;
  bool use_multi_rank_bucket_allreduce = true;
  bool allgather_partitions = true;
  int64_t allgather_bucket_size = 500'000'000;
  std::optional<bool> overlap_comm;  ///< always set after parsing: true exactly in stage 3 when not given
  bool load_from_fp32_weights = true;
  bool elastic_checkpoint = false;
  bool compute_grad_norm = true;
  std::optional<OffloadParamOptions> offload_param;
  std::optional<OffloadOptimizerOptions> offload_optimizer;
  std::optional<ZenflowOptions> zenflow;
  int64_t sub_group_size = 1'000'000'000;
  int64_t stage3_prefetch_bucket_size = 50'000'000;
  int64_t stage3_param_persistence_threshold = 100'000;
  int64_t stage3_model_persistence_threshold = kUnlimited;
  int64_t stage3_max_live_parameters = 1'000'000'000;
  int64_t stage3_max_reuse_distance = 1'000'000'000;
  bool stage3_gather_16bit_weights_on_model_save = false;
  int64_t stage3_module_granularity_threshold = 0;
  bool stage3_use_all_reduce_for_fetch_params = false;
  bool stage3_allgather_sequential = false;
  bool ignore_unused_parameters = true;
  bool legacy_stage1 = false;
  bool round_robin_gradients = false;
  bool parameter_alignment = false;
  int64_t zero_hpz_partition_size = 1;
  bool zero_quantized_weights = false;
  bool zero_quantized_nontrainable_weights = false;
  bool zero_quantized_gradients = false;
  bool memory_efficient_linear = true;
  bool pipeline_loading_checkpoint = false;
  bool override_module_apply = true;
  bool log_trace_cache_warnings = false;
  bool enable_sanity_checks = false;
  bool save_muon_momentum_buffer_in_memory = false;
  LeafModuleOptions leaf_module;
  int64_t mics_shard_size = -1;  ///< -1 = off
  bool mics_hierarchical_params_gather = false;
  std::optional<LocoOptions> zeropp_loco_param;

  OffloadDevice param_device() const { return offload_param ? offload_param->device : OffloadDevice::kNone; }
  OffloadDevice optimizer_device() const {
    return offload_optimizer ? offload_optimizer->device : OffloadDevice::kNone;
  }
};

/// `aio`: asynchronous file input and output.
struct AioOptions {
  /// Bytes. Neither this nor queue_depth given: what suits the disk; one of them given: 1 MiB, or a depth of 32.
  std::optional<int64_t> block_size;
  std::optional<int64_t> queue_depth;
  int64_t intra_op_parallelism = 1;
  bool single_submit = false;
  bool overlap_events = true;
  bool use_gds = false;
};

}  // namespace deepscale
