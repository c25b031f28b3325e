// Tables of model parallelism, compilation, hybrid engine and elasticity.
#include "config/section_builder.h"

namespace deepscale {
namespace {

using config::any;
using config::at_least;
using config::lenient_section;
using config::one_of;
using config::strict_section;

}  // namespace

const config::Section& table_of(const PipelineOptions*) {
  using S = PipelineOptions;
  static const config::Section kTable =
      lenient_section<S>("Pipeline parallelism of a PipelineModule.")
          .option("stages", &S::stages, at_least(1).or_text("auto"), "Pipeline stages; \"auto\" asks the module.")
          .option("partition", &S::partition, any(), "How layers are dealt out to stages.")
          .option("seed_layers", &S::seed_layers, any(), "Seeds the random numbers of each layer.")
          .option("activation_checkpoint_interval", &S::activation_checkpoint_interval, at_least(0),
                  "Layers between two activation checkpoints; 0 is none.")
          .option("pipe_partitioned", &S::pipe_partitioned, any(), "Sends activations in model-parallel parts.")
          .option("grad_partitioned", &S::grad_partitioned, any(), "Sends gradients in model-parallel parts.")
          .option("use_reentrant", &S::use_reentrant, any(), "Uses reentrant activation checkpointing.")
          .build();
  return kTable;
}

const config::Section& table_of(const HybridEngineOptions*) {
  using S = HybridEngineOptions;
  static const config::Section kTable =
      strict_section<S>("One engine that trains and generates (RLHF).")
          .option("enabled", &S::enabled, any(), "Turns the hybrid engine on.")
          .option("max_out_tokens", &S::max_out_tokens, at_least(1), "Longest generated sequence.")
          .option("inference_tp_size", &S::inference_tp_size, at_least(1), "Tensor-parallel ranks of generation.")
          .option("release_inference_cache", &S::release_inference_cache, any(), "Frees the cache between phases.")
          .option("pin_parameters", &S::pin_parameters, any(), "Keeps generation's parameters in place.")
          .option("tp_gather_partition_size", &S::tp_gather_partition_size, at_least(1),
                  "Layers gathered together for tensor parallelism.")
          .option("enable_cuda_graph", &S::enable_cuda_graph, any(), "Captures generation in a CUDA graph.")
          .build();
  return kTable;
}

const config::Section& table_of(const TensorParallelGroupOptions*) {
  using S = TensorParallelGroupOptions;
  static const config::Section kTable =
      strict_section<S>("The tensor-parallel group.")
          .option("tp_size", &S::tp_size, at_least(1), "Ranks that share a layer.")
          .option("tp_grain_size", &S::tp_grain_size, at_least(1), "Multiple to which parts are rounded.")
          .option("mpu", &S::mpu, any(), "Model-parallel unit object (from Python only).")
          .option("tp_group", &S::tp_group, any(), "Process group object (from Python only).")
          .build();
  return kTable;
}

const config::Section& table_of(const LayerSpecOptions*) {
  using S = LayerSpecOptions;
  static const config::Section kTable =
      strict_section<S>("How layers whose names match are partitioned; the first match wins.")
          .option("patterns", &S::patterns, config::any().single(), "Regular expressions over parameter names.")
          .option("partition_type", &S::partition_type, one_of({"row", "column", "skip"}), "Axis that is divided.")
          .option("shape", &S::shape, any(), "Shape of the weight before it is divided; -1 is inferred.")
          .option("partition_dim", &S::partition_dim, at_least(0), "Dim that is divided; null follows the type.")
          .option("model_types", &S::model_types, any(), "Model types that the rule is for; null is all.")
          .option("gather_output", &S::gather_output, any(), "Gathers the layer's output.")
          .option("grad_allreduce", &S::grad_allreduce, any(), "Sums the gradients of replicated weights.")
          .build();
  return kTable;
}

const config::Section& table_of(const PartitionOptions*) {
  using S = PartitionOptions;
  static const config::Section kTable =
      strict_section<S>("Rules that partition layers.")
          .option("use_default_specs", &S::use_default_specs, any(), "Adds the rules of the preset.")
          .option("strict_mode", &S::strict_mode, any(), "Refuses layers that no rule matches.")
          .option("lm_head_patterns", &S::lm_head_patterns, config::any().single(), "Names of output layers.")
          .option("layer_specs", &S::layer_specs, any(), "The rules.")
          .build();
  return kTable;
}

const config::Section& table_of(const TensorParallelOptions*) {
  using S = TensorParallelOptions;
  static const config::Section kTable =
      strict_section<S>("Automatic tensor parallelism (AutoTP) in training.")
          .option("autotp_size", &S::autotp_size, at_least(0), "Ranks that share a layer; 0 and 1 are off.")
          .option("dtype", &S::dtype,
                  one_of({"fp16", "bf16", "fp32", "float16", "half", "bfloat16", "float32", "float", "torch.float16",
                          "torch.bfloat16", "torch.float32"}),
                  "Element type of the model.")
          .option("tp", &S::tp, config::alias("tensor_parallel"), "The tensor-parallel group.")
          .option("tp_overlap_comm", &S::tp_overlap_comm, any(), "Communicates while computing.")
          .option("preset_model", &S::preset_model,
                  one_of({"llama", "bloom", "chatglm", "mixtral", "deepseek_v2", "qwen2", "phi3"}),
                  "Built-in rules of a model family.")
          .option("partition_config", &S::partition_config, any(), "Rules that partition layers.")
          .option("injection_policy_tuple", &S::injection_policy_tuple, any(),
                  "Names of layers whose output is summed.")
          .option("keep_module_on_host", &S::keep_module_on_host, any(), "Does not move the model to the device.")
          .option("replace_with_kernel_inject", &S::replace_with_kernel_inject, config::alias("kernel_inject"),
                  "Replaces modules by fused kernels.")
          .option("vocab_parallel_lm_head", &S::vocab_parallel_lm_head, any(),
                  "Divides the output layer over the vocabulary; null follows the model.")
          .option("vocab_parallel_ce_backend", &S::vocab_parallel_ce_backend, one_of({"torch", "liger"}),
                  "Who computes the vocabulary-parallel loss.")
          .build();
  return kTable;
}

const config::Section& table_of(const ExpertParallelOptions*) {
  using S = ExpertParallelOptions;
  static const config::Section kTable =
      lenient_section<S>(
          "Expert parallelism of mixture-of-experts models (AutoEP). Keys that are not listed are kept as they are.")
          .option("enabled", &S::enabled, any(), "Turns expert parallelism on.")
          .option("autoep_size", &S::autoep_size, at_least(1), "Ranks that share the experts.")
          .option("preset_model", &S::preset_model, any(), "Model family.")
          .option("use_grouped_mm", &S::use_grouped_mm, any(), "Multiplies all experts at once.")
          .rest(&S::rest)
          .build();
  return kTable;
}

const config::Section& table_of(const CompileOptions*) {
  using S = CompileOptions;
  static const config::Section kTable =
      strict_section<S>("What engine.compile() does with the model (DeepCompile).")
          .option("deepcompile", &S::deepcompile, any(), "Turns DeepCompile on.")
          .option("passes", &S::passes, one_of({"z1", "z3", "autosp", "autotp"}), "Passes over the graph.")
          .option("free_activation", &S::free_activation, any(), "Frees large activations early.")
          .option("free_activation_threshold", &S::free_activation_threshold, at_least(0),
                  "Bytes from which an activation is freed early.")
          .option("offload_activation", &S::offload_activation, any(), "Moves saved activations to the host.")
          .option("offload_activation_pin_memory", &S::offload_activation_pin_memory, any(),
                  "Page-locks that host memory.")
          .option("offload_opt_states", &S::offload_opt_states, any(),
                  "Moves optimizer states to the host between steps.")
          .option("offload_parameters", &S::offload_parameters, any(), "Moves parameters to the host.")
          .option("double_buffer", &S::double_buffer, any(), "Uses two communication buffers in turn.")
          .option("symmetric_memory", &S::symmetric_memory, any(), "Communicates through symmetric memory.")
          .option("debug_log", &S::debug_log, any(), "Writes the graphs.")
          .option("sync_before_reduce", &S::sync_before_reduce, any(), "Synchronises before each reduction.")
          .option("sync_after_reduce", &S::sync_after_reduce, any(), "Synchronises after each reduction.")
          .option("sync_before_allgather", &S::sync_before_allgather, any(), "Synchronises before each all-gather.")
          .option("sync_after_allgather", &S::sync_after_allgather, any(), "Synchronises after each all-gather.")
          .option("keep_int_input_tensors", &S::keep_int_input_tensors, any(), "Keeps real integer inputs.")
          .option("keep_all_input_tensors", &S::keep_all_input_tensors, any(), "Keeps all real inputs.")
          .option("autoep_non_moe", &S::autoep_non_moe, any(), "Compiles what surrounds expert-parallel layers.")
          .build();
  return kTable;
}

const config::Section& table_of(const ElasticityOptions*) {
  using S = ElasticityOptions;
  static const config::Section kTable =
      lenient_section<S>("Batch sizes that hold for many numbers of ranks.")
          .option("enabled", &S::enabled, any(),
                  "Turns elasticity on: it then determines the three batch sizes. Needs max_train_batch_size and "
                  "micro_batch_sizes.")
          .option("max_train_batch_size", &S::max_train_batch_size, at_least(1), "Largest train_batch_size.")
          .option("micro_batch_sizes", &S::micro_batch_sizes, at_least(1), "Micro-batch sizes to choose from.")
          .option("min_gpus", &S::min_gpus, at_least(1), "Fewest ranks.")
          .option("max_gpus", &S::max_gpus, at_least(1), "Most ranks.")
          .option("min_time", &S::min_time, at_least(0), "Minutes that a run should last before it is resized.")
          .option("prefer_larger_batch", &S::prefer_larger_batch, any(),
                  "Takes the larger of two batches that as many numbers of ranks can share.")
          .option("ignore_non_elastic_batch_info", &S::ignore_non_elastic_batch_info, any(),
                  "Ignores batch sizes given elsewhere instead of refusing them.")
          .option("version", &S::version, at_least(0), "Version of the rules: 0.1, or 0.2 for whole machines.")
          .option("num_gpus_per_node", &S::num_gpus_per_node, at_least(1), "Ranks of one machine.")
          .option("model_parallel_size", &S::model_parallel_size, at_least(1), "Model-parallel ranks.")
          .build();
  return kTable;
}

}  // namespace deepscale
