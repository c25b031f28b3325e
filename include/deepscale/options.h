// The option structs of the configuration (ds_config.json): plain values, in the order in which they are documented.
// A member's initialiser is its default; names in JSON, ranges, aliases and meanings stand beside them in the option
// table (src/config/section_*.cpp), from which docs/config.md is generated. Sizes are in elements unless a name ends in
// _bytes.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "deepscale/options_features.h"
#include "deepscale/options_zero.h"

namespace deepscale {

/// Element types that a configuration can name.
enum class FloatType { kFp32, kFp16, kBf16 };

/// What a gradient becomes over the data-parallel ranks.
enum class GradientReduceOp {
  kMean,  ///< sum divided by the number of data-parallel ranks
  kSum,   ///< sum, not divided
};

/// What happens when ranks save a checkpoint under different tags.
enum class TagValidation { kIgnore, kWarn, kFail };

/// `optimizer`: used when the program passes no optimizer object.
struct OptimizerOptions {
  std::optional<std::string> type;
  RawJson params;
  bool legacy_fusion = false;
};

/// `scheduler`: used when the program passes no scheduler object.
struct SchedulerOptions {
  std::optional<std::string> type;
  RawJson params;
};

/// `fp16`.
struct Fp16Options {
  bool enabled = false;
  bool auto_cast = false;
  double loss_scale = 0;
  int64_t initial_scale_power = 16;
  int64_t loss_scale_window = 1000;
  int64_t hysteresis = 2;
  bool consecutive_hysteresis = false;
  double min_loss_scale = 1;
  bool fp16_master_weights_and_grads = false;
};

/// `bf16`.
struct Bf16Options {
  bool enabled = false;
  bool immediate_grad_update = false;
  bool check_grad_overflow = true;
  bool bf16_master_weights_and_grads = false;
  bool bf16_optimizer_states = false;
};

/// `torch_autocast`.
struct TorchAutocastOptions {
  bool enabled = false;
  std::optional<FloatType> dtype;
  std::optional<std::vector<std::string>> lower_precision_safe_modules;
};

/// `data_types`.
struct DataTypeOptions {
  std::optional<FloatType> grad_accum_dtype;
  std::optional<FloatType> param_dtype;
  std::optional<FloatType> buffer_dtype;
  std::optional<std::vector<std::string>> keep_in_fp32_modules;  ///< nothing = "auto"
};

/// `activation_checkpointing`.
struct ActivationCheckpointingOptions {
  bool partition_activations = false;
  std::optional<int64_t> number_checkpoints;
  bool contiguous_memory_optimization = false;
  bool synchronize_checkpoint_boundary = false;
  bool profile = false;
  bool cpu_checkpointing = false;
};

struct ParallelWriteOptions {
  bool pipeline_stage = false;
};

/// `checkpoint.writer`.
struct CheckpointWriterOptions {
  std::string type = "FAST";
  int64_t io_buffer_size = 64 * 1024 * 1024;
  bool io_buffer_double = true;
  bool show_statistics = false;
  std::optional<std::string> data_parallel;
  bool decoupled = false;
  int64_t io_multiplier = 1;
};

/// `checkpoint`.
struct CheckpointOptions {
  TagValidation tag_validation = TagValidation::kWarn;
  bool load_universal = false;
  bool use_node_local_storage = false;
  ParallelWriteOptions parallel_write;
  bool checkpoint_serialization = true;
  std::optional<CheckpointWriterOptions> writer;
  std::string format = "deepspeed";  ///< or "native"
  bool async_save = false;
  int64_t keep_last = 0;  ///< 0: all
  bool load_data_position = true;
};

/// `comms_logger`.
struct CommsLoggerOptions {
  bool enabled = false;
  bool prof_all = true;
  std::vector<std::string> prof_ops;
  bool verbose = false;
  bool debug = false;
};

struct ThroughputTimerOptions {
  bool enabled = true;
  bool synchronized = true;
};

struct TimerOptions {
  ThroughputTimerOptions throughput;
};

/// The whole configuration.
struct Options {
  // batch sizes: nothing only before they are resolved (ParseMode::kZeroInit)
  std::optional<int64_t> train_batch_size;
  std::optional<int64_t> train_micro_batch_size_per_gpu;
  std::optional<int64_t> gradient_accumulation_steps;

  std::optional<int64_t> steps_per_print;  ///< nothing = never
  bool dump_state = false;
  bool wall_clock_breakdown = false;
  bool memory_breakdown = false;
  std::optional<std::string> log_level;
  double gradient_clipping = 1.0;
  bool prescale_gradients = false;
  double gradient_predivide_factor = 1.0;
  GradientReduceOp gradient_allreduce_op = GradientReduceOp::kMean;
  std::optional<FloatType> communication_data_type;  ///< nothing = the model's
  std::optional<FloatType> seq_parallel_communication_data_type = FloatType::kFp32;
  bool disable_allgather = false;
  bool managed_gradient_accumulation = true;
  bool zero_allow_untested_optimizer = false;
  bool zero_force_ds_cpu_optimizer = true;
  bool dataloader_drop_last = false;
  bool use_data_before_expert_parallelism = false;
  std::optional<int64_t> vocabulary_size;
  bool disable_python_gc = false;
  std::optional<int64_t> sequence_parallel_size;
  std::optional<int64_t> data_parallel_size;

  OptimizerOptions optimizer;
  SchedulerOptions scheduler;
  Fp16Options fp16;
  Bf16Options bf16;
  TorchAutocastOptions torch_autocast;
  DataTypeOptions data_types;
  ZeroOptions zero;  ///< JSON name zero_optimization
  AioOptions aio;
  ActivationCheckpointingOptions activation_checkpointing;
  CheckpointOptions checkpoint;
  RawJson datastates_ckpt{"null"};
  CommsLoggerOptions comms_logger;
  TimerOptions timers;

  // features that come later (options_features.h)
  FileMonitorOptions tensorboard;
  FileMonitorOptions csv_monitor;
  WandbOptions wandb;
  CometOptions comet;
  FlopsProfilerOptions flops_profiler;
  PipelineOptions pipeline;
  HybridEngineOptions hybrid_engine;
  TensorParallelOptions tensor_parallel;
  ExpertParallelOptions expert_parallel;
  CompileOptions compile;
  AutotuningOptions autotuning;
  ElasticityOptions elasticity;
  DataEfficiencyOptions data_efficiency;
  LegacyCurriculumOptions curriculum_learning;
  ProgressiveLayerDropOptions progressive_layer_drop;
  EigenvalueOptions eigenvalue;
  std::optional<SparseAttentionOptions> sparse_attention;
  RawSwitch quantize_training;
  RawSwitch amp;
  RawSwitch msamp;
  RawSwitch nebula;
  bool sparse_gradients = false;
  bool graph_harvesting = false;
  CompressionOptions compression_training;
  std::optional<WeightQuantizationOptions> weight_quantization;
  std::optional<InferenceOptions> inference;
};

}  // namespace deepscale
