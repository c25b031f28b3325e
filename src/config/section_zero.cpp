// Tables of `zero_optimization` and its parts.
#include "config/section_builder.h"

namespace deepscale {
namespace {

using config::any;
using config::at_least;
using config::between;
using config::inside;
using config::Json;
using config::one_of;
using config::Problems;
using config::Retired;

// cpu_offload: true was written before offload_* existed; false says nothing.
void rewrite_cpu_offload(Json& object, const Json& value, const std::string& path, Problems& problems,
                         std::string_view old_name, const std::string& section) {
  if (!value.is_boolean()) {
    problems.error(config::join_path(path, old_name),
                   fmt::format("must be true or false, found {}; use {}.device", config::show(value), section));
    return;
  }
  if (value == false) return;
  const auto present = object.find(section);
  if (present != object.end() && !present->is_null() && *present != "auto") {
    problems.error(config::join_path(path, old_name),
                   fmt::format("cannot be given together with {}, which replaces it; remove it", section));
    return;
  }
  object[section] = Json{{"device", "cpu"}};
}

const Retired kCpuOffload = {"cpu_offload", "use offload_optimizer.device \"cpu\"",
                             [](Json& object, const Json& value, const std::string& path, Problems& problems) {
                               rewrite_cpu_offload(object, value, path, problems, "cpu_offload", "offload_optimizer");
                             }};

const Retired kCpuOffloadParam = {"cpu_offload_param", "use offload_param.device \"cpu\"",
                                  [](Json& object, const Json& value, const std::string& path, Problems& problems) {
                                    rewrite_cpu_offload(object, value, path, problems, "cpu_offload_param",
                                                        "offload_param");
                                  }};

// Stands last in the table: by now cpu_offload has become offload_optimizer.
const Retired kCpuOffloadPin = {"cpu_offload_use_pin_memory",
                                "use offload_optimizer.pin_memory and offload_param.pin_memory",
                                [](Json& object, const Json& value, const std::string&, Problems&) {
                                  for (const char* section : {"offload_optimizer", "offload_param"}) {
                                    const auto found = object.find(section);
                                    if (found == object.end() || !found->is_object()) continue;
                                    if (!found->contains("pin_memory")) (*found)["pin_memory"] = value;
                                  }
                                }};

auto zero_reduction(config::SectionBuilder<ZeroOptions>&& table) {
  return std::move(table)
      .option("stage", &ZeroOptions::stage, between(0, 3),
              "What is sharded over the data-parallel ranks: 0 nothing, 1 optimizer states, 2 also gradients, 3 also "
              "parameters.")
      .option("contiguous_gradients", &ZeroOptions::contiguous_gradients, any(),
              "Copies gradients into one contiguous buffer as they are produced.")
      .option("reduce_scatter", &ZeroOptions::reduce_scatter, any(),
              "Reduces each gradient to its owner instead of to all ranks.")
      .option("reduce_bucket_size", &ZeroOptions::reduce_bucket_size, at_least(1),
              "Elements reduced in one collective.")
      .option("use_multi_rank_bucket_allreduce", &ZeroOptions::use_multi_rank_bucket_allreduce, any(),
              "Reduces a bucket that spans several owners by one collective.")
      .option("allgather_partitions", &ZeroOptions::allgather_partitions, any(),
              "Collects updated parameters by all-gather instead of by broadcasts.")
      .option("allgather_bucket_size", &ZeroOptions::allgather_bucket_size, at_least(0),
              "Elements collected in one all-gather after the step; even in stages 1 and 2.")
      .option("overlap_comm", &ZeroOptions::overlap_comm, config::any().note("true in stage 3, else false"),
              "Reduces gradients while the backward pass goes on.")
      .option("load_from_fp32_weights", &ZeroOptions::load_from_fp32_weights, any(),
              "Restores master weights from the checkpoint's fp32 copies instead of from the 16-bit weights.")
      .option("elastic_checkpoint", &ZeroOptions::elastic_checkpoint, any(),
              "Old way to load a checkpoint with another number of ranks; has no effect here.")
      .option("compute_grad_norm", &ZeroOptions::compute_grad_norm, any(),
              "Computes the global gradient norm; false only in stages 1 and 2 without clipping, offload and zenflow.");
}

auto zero_placement(config::SectionBuilder<ZeroOptions>&& table) {
  return std::move(table)
      .option("offload_param", &ZeroOptions::offload_param, any(), "Where sharded parameters live (stage 3).")
      .option("offload_optimizer", &ZeroOptions::offload_optimizer, any(),
              "Where optimizer states live and are updated (stages 1 to 3).")
      .option("zenflow", &ZeroOptions::zenflow, any(),
              "Updates important gradients at once and the others later on the host.")
      .option("sub_group_size", &ZeroOptions::sub_group_size, at_least(0).unlimited(),
              "Local elements that the optimizer processes at a time (stage 3).")
      .option("stage3_prefetch_bucket_size", &ZeroOptions::stage3_prefetch_bucket_size,
              at_least(0).alias("prefetch_bucket_size"), "Elements gathered ahead of their use.")
      .option("stage3_param_persistence_threshold", &ZeroOptions::stage3_param_persistence_threshold,
              at_least(0).unlimited().alias("param_persistence_threshold"),
              "Parameters with fewer elements stay gathered.")
      .option("stage3_model_persistence_threshold", &ZeroOptions::stage3_model_persistence_threshold,
              at_least(0).unlimited().alias("model_persistence_threshold"),
              "Most elements of a model that may stay gathered.")
      .option("stage3_max_live_parameters", &ZeroOptions::stage3_max_live_parameters,
              at_least(0).unlimited().alias("max_live_parameters"), "Most elements gathered at one time.")
      .option("stage3_max_reuse_distance", &ZeroOptions::stage3_max_reuse_distance,
              at_least(0).unlimited().alias("max_reuse_distance"),
              "A parameter that is used again within this many elements is not released in between.")
      .option("stage3_gather_16bit_weights_on_model_save", &ZeroOptions::stage3_gather_16bit_weights_on_model_save,
              config::alias("gather_16bit_weights_on_model_save").old_name("stage3_gather_fp16_weights_on_model_save"),
              "Lets save_16bit_model collect the whole model.")
      .option("stage3_module_granularity_threshold", &ZeroOptions::stage3_module_granularity_threshold,
              at_least(0).alias("module_granularity_threshold"),
              "Accepted for old configurations; has no effect here (see leaf_module).")
      .option("stage3_use_all_reduce_for_fetch_params", &ZeroOptions::stage3_use_all_reduce_for_fetch_params,
              config::alias("use_all_reduce_for_fetch_params"), "Accepted for old configurations; has no effect here.")
      .option("stage3_allgather_sequential", &ZeroOptions::stage3_allgather_sequential,
              config::alias("allgather_sequential"), "Accepted for old configurations; has no effect here.");
}

auto zero_rest(config::SectionBuilder<ZeroOptions>&& table) {
  return std::move(table)
      .option("ignore_unused_parameters", &ZeroOptions::ignore_unused_parameters, any(),
              "Tolerates parameters that a step does not use (stages 1 and 2).")
      .option("legacy_stage1", &ZeroOptions::legacy_stage1, any(), "Must be false: the old stage 1 no longer exists.")
      .option("round_robin_gradients", &ZeroOptions::round_robin_gradients, any(),
              "Deals parameters out to ranks in turn (stages 1 and 2).")
      .option("parameter_alignment", &ZeroOptions::parameter_alignment, any(),
              "Accepted: parameters in flat buffers always start on an aligned address.")
      .option("zero_hpz_partition_size", &ZeroOptions::zero_hpz_partition_size, at_least(1),
              "ZeRO++ hpZ: ranks of the second, closer sharding that the backward pass uses (stage 3).")
      .option("zero_quantized_weights", &ZeroOptions::zero_quantized_weights, any(),
              "ZeRO++ qwZ: gathers weights as int8.")
      .option("zero_quantized_nontrainable_weights", &ZeroOptions::zero_quantized_nontrainable_weights, any(),
              "Keeps frozen weights quantised.")
      .option("zero_quantized_gradients", &ZeroOptions::zero_quantized_gradients, any(),
              "ZeRO++ qgZ: reduces gradients as int4.")
      .option("memory_efficient_linear", &ZeroOptions::memory_efficient_linear, any(),
              "Linear layers of stage 3 do not save the gathered weight.")
      .option("pipeline_loading_checkpoint", &ZeroOptions::pipeline_loading_checkpoint, any(),
              "Loads a checkpoint as pipeline stages do.")
      .option("override_module_apply", &ZeroOptions::override_module_apply, any(),
              "module.apply gathers the parameters it visits.")
      .option("log_trace_cache_warnings", &ZeroOptions::log_trace_cache_warnings, any(),
              "Logs when the recorded order of modules becomes invalid.")
      .option("enable_sanity_checks", &ZeroOptions::enable_sanity_checks, any(),
              "Accepted: internal invariants are always checked.")
      .option("save_muon_momentum_buffer_in_memory", &ZeroOptions::save_muon_momentum_buffer_in_memory, any(),
              "Keeps Muon's momentum in memory when other states are on files.")
      .option("leaf_module", &ZeroOptions::leaf_module, any(), "Modules that stage 3 gathers and releases as one unit.")
      .option("mics_shard_size", &ZeroOptions::mics_shard_size, at_least(-1),
              "MiCS: ranks of one sharding group, which are replicated over the others; -1 is off (stage 3).")
      .option("mics_hierarchical_params_gather", &ZeroOptions::mics_hierarchical_params_gather, any(),
              "MiCS: gathers within a machine first.")
      .option("zeropp_loco_param", &ZeroOptions::zeropp_loco_param, any(), "Error feedback for quantised gradients.");
}

}  // namespace

const config::Section& table_of(const ZeroOptions*) {
  static const config::Section kTable =
      zero_rest(zero_placement(zero_reduction(config::strict_section<ZeroOptions>(
                    "ZeRO: what is sharded, how it is communicated and where it lives. `true` stands for stage 1 and "
                    "`false` for stage 0 (deprecated). Sizes are in elements."))))
          .from_boolean([](bool on) {
            return Json{{"stage", on ? 1 : 0}};
          })
          .retired(kCpuOffload)
          .retired(kCpuOffloadParam)
          .retired(kCpuOffloadPin)
          .build();
  return kTable;
}

const config::Section& table_of(const OffloadParamOptions*) {
  using S = OffloadParamOptions;
  static const config::Section kTable =
      config::strict_section<S>("Where sharded parameters live. Stage 3 only; without effect in other stages.")
          .option("device", &S::device, config::any().null_default(), "Memory that holds the parameters.")
          .option("nvme_path", &S::nvme_path, any(), "Folder on a local disk; required for device nvme.")
          .option("buffer_count", &S::buffer_count, at_least(0), "Buffers between disk and host.")
          .option("buffer_size", &S::buffer_size, at_least(0), "Elements of one buffer.")
          .option("max_in_cpu", &S::max_in_cpu, at_least(0).unlimited(),
                  "Elements that stay in host memory with device nvme.")
          .option("pin_memory", &S::pin_memory, any(), "Page-locks the host memory, for fast copies to a GPU.")
          .build();
  return kTable;
}

const config::Section& table_of(const OffloadOptimizerOptions*) {
  using S = OffloadOptimizerOptions;
  static const config::Section kTable =
      config::strict_section<S>("Where optimizer states live and are updated. Stages 1 to 3.")
          .option("device", &S::device, config::any().null_default(), "Memory that holds the optimizer states.")
          .option("nvme_path", &S::nvme_path, any(), "Folder on a local disk; required for device nvme.")
          .option("buffer_count", &S::buffer_count, at_least(0),
                  "Buffers between disk and host; at least the number of states (4 for Adam).")
          .option("pin_memory", &S::pin_memory, any(), "Page-locks the host memory, for fast copies to a GPU.")
          .option("pipeline_read", &S::pipeline_read, any(), "Reads the next part while this one is updated.")
          .option("pipeline_write", &S::pipeline_write, any(), "Writes the last part while this one is updated.")
          .option("fast_init", &S::fast_init, any(), "Initialises states on disk without reading them back.")
          .option("ratio", &S::ratio, between(0, 1),
                  "Fraction of the states that is offloaded; below 1 only in stage 3.")
          .option("super_offload", &S::super_offload, any(), "Offload for CPUs and GPUs with a fast link.")
          .option("cpuadam_cores_perc", &S::cpuadam_cores_perc, between(0, 1),
                  "Fraction of the cores that update the states with super_offload.")
          .build();
  return kTable;
}

const config::Section& table_of(const ZenflowOptions*) {
  using S = ZenflowOptions;
  static const config::Section kTable =
      config::strict_section<S>("Updates important gradients at once and the others later on the host.")
          .option("topk_ratio", &S::topk_ratio, inside(0, 1), "Fraction of gradient columns that counts as important.")
          .option("select_strategy", &S::select_strategy, one_of({"auto", "step", "epoch"}),
                  "When the important columns are chosen anew.")
          .option("select_interval", &S::select_interval, at_least(1).or_text("auto"),
                  "Steps or epochs between two choices.")
          .option("update_interval", &S::update_interval, at_least(1).or_text("auto"),
                  "Steps between two updates of the unimportant columns.")
          .option("overlap_step", &S::overlap_step, any(), "Updates on the host while forward and backward go on.")
          .option("offload", &S::offload, any(), "Moves the selected states to the host too.")
          .option("auto_ratio", &S::auto_ratio, between(0, 1), "Threshold of the automatic update interval.")
          .option("full_warm_up_rounds", &S::full_warm_up_rounds, at_least(0),
                  "First rounds in which every gradient is applied.")
          .option("pt_reserved_cores_perc", &S::pt_reserved_cores_perc, between(0, 1),
                  "Fraction of the cores that is left to PyTorch.")
          .build();
  return kTable;
}

const config::Section& table_of(const LeafModuleOptions*) {
  using S = LeafModuleOptions;
  static const config::Section kTable =
      config::strict_section<S>("Modules that stage 3 gathers and releases as one unit.")
          .option("classes", &S::classes, config::any().single(), "Class names or full class paths.")
          .option("names", &S::names, config::any().single(), "Full names of modules.")
          .option("name_suffixes", &S::name_suffixes, config::any().single(), "Ends of module names.")
          .build();
  return kTable;
}

const config::Section& table_of(const LocoOptions*) {
  using S = LocoOptions;
  static const config::Section kTable =
      config::strict_section<S>("Error feedback for quantised gradients.")
          .option("err_beta", &S::err_beta, between(0, 1), "Weight of the old error.")
          .option("reset_T", &S::reset_T, at_least(1), "Steps after which the error is forgotten.")
          .build();
  return kTable;
}

}  // namespace deepscale
