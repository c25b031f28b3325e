// The option structs of features beside the training core (see options.h). They are parsed and validated whether or not
// the feature exists yet; src/config/not_built.cpp lists what is refused when it is switched on.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "deepscale/options_zero.h"

namespace deepscale {

/// A section of which only the switch is known; the rest belongs to a third party and is kept as it is.
struct RawSwitch {
  bool enabled = false;
  RawJson rest;
};

/// `tensorboard` and `csv_monitor`.
struct FileMonitorOptions {
  bool enabled = false;
  std::string output_path;
  std::string job_name = "DeepSpeedJobName";
};

struct WandbOptions {
  bool enabled = false;
  std::optional<std::string> group;
  std::optional<std::string> team;
  std::string project = "deepspeed";
};

struct CometOptions {
  bool enabled = false;
  int64_t samples_log_interval = 100;
  std::optional<std::string> project;
  std::optional<std::string> workspace;
  std::optional<std::string> api_key;
  std::optional<std::string> experiment_name;
  std::optional<std::string> experiment_key;
  std::optional<bool> online;
  std::optional<std::string> mode;
};

struct FlopsProfilerOptions {
  bool enabled = false;
  double recompute_fwd_factor = 0.0;
  int64_t profile_step = 1;
  int64_t module_depth = -1;
  int64_t top_modules = 1;
  bool detailed = true;
  std::optional<std::string> output_file;
};

struct PipelineOptions {
  std::optional<int64_t> stages;  ///< nothing = "auto"
  std::string partition = "best";
  bool seed_layers = false;
  int64_t activation_checkpoint_interval = 0;
  bool pipe_partitioned = true;
  bool grad_partitioned = true;
  bool use_reentrant = true;
};

struct HybridEngineOptions {
  bool enabled = false;
  int64_t max_out_tokens = 512;
  int64_t inference_tp_size = 1;
  bool release_inference_cache = false;
  bool pin_parameters = true;
  int64_t tp_gather_partition_size = 8;
  bool enable_cuda_graph = false;
};

struct TensorParallelGroupOptions {
  int64_t tp_size = 1;
  int64_t tp_grain_size = 1;
  RawJson mpu{"null"};
  RawJson tp_group{"null"};
};

struct LayerSpecOptions {
  std::vector<std::string> patterns;
  std::string partition_type = "column";
  RawJson shape{"null"};
  std::optional<int64_t> partition_dim;
  std::optional<std::vector<std::string>> model_types;
  bool gather_output = false;
  bool grad_allreduce = false;
};

struct PartitionOptions {
  bool use_default_specs = true;
  bool strict_mode = false;
  std::vector<std::string> lm_head_patterns = {"lm_head", "embed_out"};
  std::vector<LayerSpecOptions> layer_specs;
};

struct TensorParallelOptions {
  int64_t autotp_size = 0;
  std::string dtype = "fp16";
  TensorParallelGroupOptions tp;
  bool tp_overlap_comm = false;
  std::optional<std::string> preset_model;
  std::optional<PartitionOptions> partition_config;
  RawJson injection_policy_tuple{"null"};
  bool keep_module_on_host = false;
  bool replace_with_kernel_inject = false;
  std::optional<bool> vocab_parallel_lm_head;
  std::string vocab_parallel_ce_backend = "torch";
};

struct ExpertParallelOptions {
  bool enabled = false;
  int64_t autoep_size = 1;
  std::optional<std::string> preset_model;
  bool use_grouped_mm = true;
  RawJson rest;
};

struct CompileOptions {
  bool deepcompile = false;
  std::optional<std::vector<std::string>> passes;
  bool free_activation = false;
  int64_t free_activation_threshold = 10 * 1024 * 1024;  ///< bytes
  bool offload_activation = false;
  bool offload_activation_pin_memory = true;
  bool offload_opt_states = false;
  bool offload_parameters = false;
  bool double_buffer = true;
  bool symmetric_memory = false;
  bool debug_log = false;
  bool sync_before_reduce = false;
  bool sync_after_reduce = false;
  bool sync_before_allgather = false;
  bool sync_after_allgather = false;
  bool keep_int_input_tensors = true;
  bool keep_all_input_tensors = false;
  bool autoep_non_moe = false;
};

struct ModelInfoOptions {
  bool profile = false;
  std::optional<int64_t> num_params;
  std::optional<int64_t> hidden_size;
  std::optional<int64_t> num_layers;
};

struct AutotuningOptions {
  bool enabled = false;
  bool fast = true;
  std::string results_dir = "autotuning_results";
  std::string exps_dir = "autotuning_exps";
  bool overwrite = true;
  std::string metric = "throughput";
  int64_t start_profile_step = 3;
  int64_t end_profile_step = 5;
  std::optional<std::string> metric_path;
  std::string tuner_type = "gridsearch";
  int64_t tuner_early_stopping = 5;
  int64_t tuner_num_trials = 50;
  RawJson arg_mappings{"null"};
  std::optional<ModelInfoOptions> model_info;
  std::optional<std::string> model_info_path;
  int64_t mp_size = 1;
  std::optional<int64_t> max_train_batch_size;
  int64_t min_train_batch_size = 1;
  int64_t max_train_micro_batch_size_per_gpu = 1024;
  int64_t min_train_micro_batch_size_per_gpu = 1;
  int64_t num_tuning_micro_batch_sizes = 3;
};

struct ElasticityOptions {
  bool enabled = false;
  int64_t max_train_batch_size = 2000;
  std::vector<int64_t> micro_batch_sizes = {2, 4, 6};
  int64_t min_gpus = 1;
  int64_t max_gpus = 10000;
  int64_t min_time = 0;
  bool prefer_larger_batch = true;
  bool ignore_non_elastic_batch_info = false;
  double version = 0.2;
  int64_t num_gpus_per_node = 1;
  int64_t model_parallel_size = 1;
};

struct CurriculumScheduleOptions {
  std::optional<int64_t> total_curriculum_step;
  std::optional<int64_t> difficulty_step;
  std::optional<double> root_degree;
  std::optional<std::vector<int64_t>> difficulty;
  std::optional<std::vector<int64_t>> max_step;
};

struct CurriculumMetricOptions {
  std::optional<std::string> index_to_sample_path;
  std::optional<std::string> index_to_metric_path;
  std::string difficulty_type = "value";
  std::string clustering_type = "single_cluster";
  std::optional<int64_t> min_difficulty;
  std::optional<int64_t> max_difficulty;
  std::string schedule_type = "fixed_linear";
  CurriculumScheduleOptions schedule_config;
};

struct CurriculumOptions {
  bool enabled = false;
  std::optional<std::string> data_cluster_path;
  std::map<std::string, CurriculumMetricOptions> curriculum_metrics;
};

struct DynamicBatchingOptions {
  bool enabled = false;
  std::optional<int64_t> max_tokens;
  std::string lr_scaling_method = "linear";
  int64_t min_batch_size = 1;
  std::optional<int64_t> max_batch_size;
  std::string sequence_picking_order = "dataloader";
  std::optional<std::string> metrics_path;
  bool verbose = false;
};

struct DataSamplingOptions {
  bool enabled = false;
  int64_t num_epochs = 1000;
  int64_t num_workers = 0;
  bool pin_memory = false;
  CurriculumOptions curriculum_learning;
  DynamicBatchingOptions dynamic_batching;
};

struct RandomLtdScheduleConfigOptions {
  std::optional<int64_t> require_steps;
  std::optional<int64_t> seq_per_step;
};

struct RandomLtdScheduleOptions {
  std::optional<int64_t> min_value;
  std::optional<int64_t> max_value;
  std::string schedule_type = "fixed_linear";
  RandomLtdScheduleConfigOptions schedule_config;
};

struct RandomLtdOptions {
  bool enabled = false;
  std::optional<int64_t> total_layer_num;
  std::optional<int64_t> random_ltd_layer_num;
  std::vector<int64_t> random_ltd_layer_id;
  std::optional<std::string> model_mask_name;
  std::string model_type = "decoder";
  std::string hidden_state_order = "batch_seq_dim";
  RandomLtdScheduleOptions random_ltd_schedule;
  RawSwitch layer_token_lr_schedule;
};

struct DataRoutingOptions {
  bool enabled = false;
  RandomLtdOptions random_ltd;
};

struct DataEfficiencyOptions {
  bool enabled = false;
  int64_t seed = 1234;
  DataSamplingOptions data_sampling;
  DataRoutingOptions data_routing;
};

/// The old `curriculum_learning` at top level.
struct LegacyCurriculumOptions {
  bool enabled = false;
  std::string curriculum_type = "seqlen";
  std::optional<int64_t> min_difficulty;
  std::optional<int64_t> max_difficulty;
  std::string schedule_type = "fixed_linear";
  CurriculumScheduleOptions schedule_config;
};

struct ProgressiveLayerDropOptions {
  bool enabled = false;
  double theta = 1.0;
  double gamma = 0.001;
};

struct EigenvalueOptions {
  bool enabled = false;
  bool verbose = false;
  int64_t max_iter = 100;
  double tol = 1e-2;
  double stability = 1e-6;
  int64_t gas_boundary_resolution = 1;
  std::string layer_name = "bert.encoder.layer";
  int64_t layer_num = 0;
};

struct SparseAttentionOptions {
  std::string mode = "fixed";
  int64_t block = 16;
  bool different_layout_per_head = false;
  int64_t num_local_blocks = 4;
  int64_t num_global_blocks = 1;
  std::string attention = "bidirectional";
  bool horizontal_global_attention = false;
  int64_t num_different_global_patterns = 1;
  int64_t num_random_blocks = 0;
  std::vector<int64_t> local_window_blocks = {4};
  std::vector<int64_t> global_block_indices = {0};
  std::optional<std::vector<int64_t>> global_block_end_indices;
  int64_t num_sliding_window_blocks = 3;
};

// compression_training: every technique has settings of its own and groups of modules with parameters.
template <class Params>
struct CompressionGroup {
  Params params;
  std::vector<std::string> modules = {"*"};
  RawJson related_modules{"null"};
};

template <class Shared, class Params>
struct CompressionTechnique {
  Shared shared_parameters;
  std::map<std::string, CompressionGroup<Params>> different_groups;
};

struct LayerReductionOptions {
  bool enabled = false;
  std::optional<int64_t> keep_number_layer;
  std::optional<std::string> module_name_prefix;
  std::vector<int64_t> teacher_layer;
  std::vector<std::string> other_module_name;
};

struct MixedQuantizeOptions {
  bool enabled = false;
  double quantize_change_ratio = 0.001;
};

struct WeightQuantizeShared {
  bool enabled = false;
  bool quantizer_kernel = false;
  int64_t schedule_offset = 0;
  int64_t quantize_groups = 1;
  bool quantize_verbose = false;
  std::string quantization_type = "symmetric";
  bool quantize_weight_in_forward = false;
  std::string rounding = "nearest";
  MixedQuantizeOptions fp16_mixed_quantize;
};

struct WeightQuantizeParams {
  std::optional<int64_t> start_bits;
  std::optional<int64_t> target_bits;
  int64_t quantization_period = 1;
};

struct ActivationQuantizeShared {
  bool enabled = false;
  std::string quantization_type = "symmetric";
  std::string range_calibration = "dynamic";
  int64_t schedule_offset = 1000;
};

struct ActivationQuantizeParams {
  std::optional<int64_t> bits;
};

struct SparsePruningShared {
  bool enabled = false;
  std::string method = "l1";
  int64_t schedule_offset = 1000;
  std::optional<int64_t> schedule_offset_end;  ///< nothing = schedule_offset
  int64_t schedule_offset_stride = 1;
  std::string block_pattern = "4x1";
  double dense_ratio = 0.1;
  std::vector<std::string> excluded_modules;
};

struct RowPruningShared {
  bool enabled = false;
  std::string method = "l1";
  int64_t schedule_offset = 1000;
};

struct HeadPruningShared {
  bool enabled = false;
  std::string method = "topk";
  int64_t schedule_offset = 1000;
  std::optional<int64_t> num_heads;
};

struct PruningParams {
  std::optional<double> dense_ratio;
};

struct CompressionOptions {
  LayerReductionOptions layer_reduction;
  CompressionTechnique<WeightQuantizeShared, WeightQuantizeParams> weight_quantization;
  CompressionTechnique<ActivationQuantizeShared, ActivationQuantizeParams> activation_quantization;
  CompressionTechnique<SparsePruningShared, PruningParams> sparse_pruning;
  CompressionTechnique<RowPruningShared, PruningParams> row_pruning;
  CompressionTechnique<HeadPruningShared, PruningParams> head_pruning;
  CompressionTechnique<RowPruningShared, PruningParams> channel_pruning;
};

/// How one kind of weight is quantised in `weight_quantization`.
struct QuantizedWeightOptions {
  int64_t num_bits = 8;
  int64_t group_size = 64;
  int64_t group_dim = 1;
  bool symmetric = false;
};

struct WeightQuantizationOptions {
  std::map<std::string, QuantizedWeightOptions> post_init_quant;
  std::optional<QuantizedWeightOptions> quantized_initialization;
};

struct InferenceTensorParallelOptions {
  bool enabled = true;
  int64_t tp_size = 1;
  int64_t tp_grain_size = 64;
  RawJson mpu{"null"};
  RawJson tp_group{"null"};
};

struct InferenceCheckpointOptions {
  std::optional<std::string> checkpoint_dir;
  std::optional<std::string> save_mp_checkpoint_path;
  std::optional<std::string> base_dir;
};

/// `inference`, and the configuration of init_inference.
struct InferenceOptions {
  bool replace_with_kernel_inject = false;
  std::string dtype = "fp16";
  InferenceTensorParallelOptions tensor_parallel;
  bool enable_cuda_graph = false;
  bool use_triton = false;
  bool triton_autotune = false;
  RawJson zero;
  bool triangular_masking = true;
  RawJson moe;
  bool keep_module_on_host = false;
  RawJson quant;
  RawJson checkpoint{"null"};
  std::string base_dir;
  bool set_empty_params = false;
  std::optional<std::string> save_mp_checkpoint_path;
  InferenceCheckpointOptions checkpoint_config;
  bool return_tuple = true;
  int64_t training_mp_size = 1;
  RawJson injection_policy{"null"};
  int64_t max_out_tokens = 1024;
  int64_t min_out_tokens = 1;
  bool transposed_mode = false;
};

}  // namespace deepscale
