// The table of the top level: general keys, then one option for every section.
#include "config/section_builder.h"

namespace deepscale {
namespace {

using config::alias;
using config::any;
using config::at_least;
using config::Json;
using config::one_of;
using config::Problems;
using config::Retired;
using Table = config::SectionBuilder<Options>;

// Beside `zero_optimization: true`, the bucket size stood at top level.
const Retired kAllgatherSize = {"allgather_size", "use zero_optimization.allgather_bucket_size",
                                [](Json& object, const Json& value, const std::string&, Problems&) {
                                  Json& zero = object["zero_optimization"];
                                  if (zero == true) zero = Json{{"stage", 1}};
                                  if (zero.is_object() && !zero.contains("allgather_bucket_size"))
                                    zero["allgather_bucket_size"] = value;
                                }};

auto batch_options(Table&& table) {
  return std::move(table)
      .option("train_batch_size", &Options::train_batch_size, at_least(1).note("from the batch equation"),
              "Samples that contribute to one optimizer step, over all ranks.")
      .option("train_micro_batch_size_per_gpu", &Options::train_micro_batch_size_per_gpu,
              at_least(1).note("from the batch equation"), "Samples of one forward pass on one rank.")
      .option("gradient_accumulation_steps", &Options::gradient_accumulation_steps,
              at_least(1).note("from the batch equation"), "Micro-batches of one optimizer step.");
}

auto report_options(Table&& table) {
  return std::move(table)
      .option("steps_per_print", &Options::steps_per_print, at_least(1).unlimited(),
              "Steps between two progress lines, which show at log_level info; null or Infinity is never.")
      .option("dump_state", &Options::dump_state, any(),
              "Logs the engine's state when it is made, at level info (log_level).")
      .option("wall_clock_breakdown", &Options::wall_clock_breakdown, any(),
              "Logs the time of forward, backward, reduction and step.")
      .option("memory_breakdown", &Options::memory_breakdown, any(), "Adds memory to that log.")
      .option("log_level", &Options::log_level, one_of({"debug", "info", "warning", "error", "critical"}).any_case(),
              "Level of the log; null is warning.")
      .option("timers", &Options::timers, any(), "Timers.");
}

auto gradient_options(Table&& table) {
  return std::move(table)
      .option("gradient_clipping", &Options::gradient_clipping, at_least(0).bool_number(),
              "Global norm to which gradients are clipped; 0 does not clip.")
      .option(
          "prescale_gradients", &Options::prescale_gradients, any(),
          "Divides gradients by the number of ranks before they are summed; not with reduce_scatter in stages 2 and 3.")
      .option("gradient_predivide_factor", &Options::gradient_predivide_factor, config::inside(0, 1e30),
              "Divides gradients by this before they are summed and multiplies back afterwards; must be 1 with "
              "reduce_scatter in stages 2 and 3.")
      .option("gradient_allreduce_op", &Options::gradient_allreduce_op, any(),
              "Mean or sum of gradients over ranks; sum not in stage 3.")
      .option("communication_data_type", &Options::communication_data_type, any(),
              "Element type in which gradients are reduced; null is the model's.")
      .option("seq_parallel_communication_data_type", &Options::seq_parallel_communication_data_type, any(),
              "The same within sequence-parallel groups.")
      .option("disable_allgather", &Options::disable_allgather, any(),
              "Accepted for old configurations; parameters are always kept equal.")
      .option(
          "managed_gradient_accumulation", &Options::managed_gradient_accumulation, any(),
          "false: every step() is a boundary and the loss is not divided; with overlap_comm only in stages 2 and 3.");
}

auto program_options(Table&& table) {
  return std::move(table)
      .option("zero_allow_untested_optimizer", &Options::zero_allow_untested_optimizer, any(),
              "Accepts optimizer classes that were not tested with ZeRO.")
      .option("zero_force_ds_cpu_optimizer", &Options::zero_force_ds_cpu_optimizer, any(),
              "Refuses optimizers of the program that are not made for the host when states are offloaded.")
      .option("dataloader_drop_last", &Options::dataloader_drop_last, any(),
              "The loader that the engine makes drops an incomplete last batch.")
      .option("use_data_before_expert_parallelism", &Options::use_data_before_expert_parallelism, any(),
              "Order of data and expert ranks in groups.")
      .option("vocabulary_size", &Options::vocabulary_size, at_least(1),
              "Size of the vocabulary; a warning unless it is a multiple of 8.")
      .option("disable_python_gc", &Options::disable_python_gc, any(),
              "Stops Python's automatic garbage collection and collects at step boundaries.")
      .option("sequence_parallel_size", &Options::sequence_parallel_size, at_least(1), "Ranks that share a sequence.")
      .option("data_parallel_size", &Options::data_parallel_size, at_least(1), "Ranks that share a batch.");
}

auto core_sections(Table&& table) {
  return std::move(table)
      .option("optimizer", &Options::optimizer, any(), "The optimizer.")
      .option("scheduler", &Options::scheduler, any(), "The learning-rate schedule.")
      .option("fp16", &Options::fp16, any(), "Training in fp16.")
      .option("bf16", &Options::bf16, alias("bfloat16"), "Training in bf16.")
      .option("torch_autocast", &Options::torch_autocast, any(), "Training under torch.autocast.")
      .option("data_types", &Options::data_types, any(), "Element types beside the model's own.")
      .option("zero_optimization", &Options::zero, any(), "ZeRO.")
      .option("aio", &Options::aio, any(), "File input and output.")
      .option("activation_checkpointing", &Options::activation_checkpointing, any(), "Activation checkpointing.")
      .option("checkpoint", &Options::checkpoint, any(), "Checkpoints.")
      .option("datastates_ckpt", &Options::datastates_ckpt, any(), "Options of the DataStates checkpoint engine.")
      .option("comms_logger", &Options::comms_logger, any(), "Log of collectives.");
}

auto feature_sections(Table&& table) {
  return std::move(table)
      .option("tensorboard", &Options::tensorboard, any(), "TensorBoard monitor.")
      .option("csv_monitor", &Options::csv_monitor, any(), "CSV monitor.")
      .option("wandb", &Options::wandb, any(), "Weights & Biases monitor.")
      .option("comet", &Options::comet, any(), "Comet monitor.")
      .option("flops_profiler", &Options::flops_profiler, any(), "Counts floating-point operations.")
      .option("pipeline", &Options::pipeline, any(), "Pipeline parallelism.")
      .option("hybrid_engine", &Options::hybrid_engine, any(), "Training and generation in one engine.")
      .option("tensor_parallel", &Options::tensor_parallel, any(), "Automatic tensor parallelism.")
      .option("expert_parallel", &Options::expert_parallel, any(), "Automatic expert parallelism.")
      .option("compile", &Options::compile, any(), "DeepCompile.")
      .option("autotuning", &Options::autotuning, any(), "Search for the fastest configuration.")
      .option("elasticity", &Options::elasticity, any(), "Batch sizes for many numbers of ranks.")
      .option("data_efficiency", &Options::data_efficiency, any(), "Curriculum, batching, token dropping.")
      .option("curriculum_learning", &Options::curriculum_learning, any(), "The old curriculum.")
      .option("progressive_layer_drop", &Options::progressive_layer_drop, any(), "Layer dropping.")
      .option("eigenvalue", &Options::eigenvalue, any(), "Eigenvalues for quantisation.")
      .option("sparse_attention", &Options::sparse_attention, any(), "Block-sparse attention.")
      .option("quantize_training", &Options::quantize_training, any(), "Mixture of quantisation.")
      .option("amp", &Options::amp, any(), "Apex mixed precision.")
      .option("msamp", &Options::msamp, any(), "MS-AMP, which Accelerate may ask for.")
      .option("nebula", &Options::nebula, any(), "Nebula checkpoint service.")
      .option("sparse_gradients", &Options::sparse_gradients, any(), "Reduces embedding gradients sparsely.")
      .option("graph_harvesting", &Options::graph_harvesting, any(), "Captures CUDA graphs.")
      .option("compression_training", &Options::compression_training, any(), "Compression during training.")
      .option("weight_quantization", &Options::weight_quantization, any(), "Quantised weights of ZeRO-Inference.")
      .option("inference", &Options::inference, any(), "Inference.");
}

}  // namespace

const config::Section& table_of(const Options*) {
  static const config::Section kTable =
      feature_sections(
          core_sections(program_options(gradient_options(report_options(batch_options(
              config::lenient_section<Options>("Keys at the top level; unknown ones are ignored with a warning.")))))))
          .root()
          .retired(kAllgatherSize)
          .build();
  return kTable;
}

}  // namespace deepscale
