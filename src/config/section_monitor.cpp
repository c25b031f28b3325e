// Tables of monitors, profiler and autotuning.
#include "config/section_builder.h"

namespace deepscale {
namespace {

using config::any;
using config::at_least;
using config::lenient_section;
using config::one_of;
using config::strict_section;

}  // namespace

const config::Section& table_of(const FileMonitorOptions*) {
  using S = FileMonitorOptions;
  static const config::Section kTable =
      strict_section<S>("A monitor that writes files: `tensorboard` event files, `csv_monitor` one CSV per event.")
          .option("enabled", &S::enabled, any(), "Turns the monitor on.")
          .option("output_path", &S::output_path, any(), "Folder; empty is the current folder.")
          .option("job_name", &S::job_name, any(), "Subfolder.")
          .build();
  return kTable;
}

const config::Section& table_of(const WandbOptions*) {
  using S = WandbOptions;
  static const config::Section kTable = strict_section<S>("Weights & Biases monitor.")
                                            .option("enabled", &S::enabled, any(), "Turns the monitor on.")
                                            .option("group", &S::group, any(), "Group of runs.")
                                            .option("team", &S::team, any(), "Team name.")
                                            .option("project", &S::project, any(), "Project name.")
                                            .build();
  return kTable;
}

const config::Section& table_of(const CometOptions*) {
  using S = CometOptions;
  static const config::Section kTable =
      strict_section<S>("Comet monitor.")
          .option("enabled", &S::enabled, any(), "Turns the monitor on.")
          .option("samples_log_interval", &S::samples_log_interval, at_least(1), "Samples between two submissions.")
          .option("project", &S::project, any(), "Project name.")
          .option("workspace", &S::workspace, any(), "Workspace name.")
          .option("api_key", &S::api_key, any(), "Key of the account.")
          .option("experiment_name", &S::experiment_name, any(), "Name of the experiment.")
          .option("experiment_key", &S::experiment_key, any(), "Key of an existing experiment.")
          .option("online", &S::online, any(), "Sends data at once instead of keeping it.")
          .option("mode", &S::mode, one_of({"get", "create", "get_or_create"}), "How the experiment is opened.")
          .build();
  return kTable;
}

const config::Section& table_of(const FlopsProfilerOptions*) {
  using S = FlopsProfilerOptions;
  static const config::Section kTable =
      lenient_section<S>("Counts floating-point operations of one step.")
          .option("enabled", &S::enabled, any(), "Turns the profiler on.")
          .option("recompute_fwd_factor", &S::recompute_fwd_factor, at_least(0),
                  "Extra forward passes of activation checkpointing.")
          .option("profile_step", &S::profile_step, at_least(0), "Step that is profiled.")
          .option("module_depth", &S::module_depth, at_least(-1), "Depth of modules to print; -1 is all.")
          .option("top_modules", &S::top_modules, at_least(1), "Modules to list for each depth.")
          .option("detailed", &S::detailed, any(), "Prints every module.")
          .option("output_file", &S::output_file, any(), "File to write instead of the standard output.")
          .build();
  return kTable;
}

const config::Section& table_of(const ModelInfoOptions*) {
  using S = ModelInfoOptions;
  static const config::Section kTable = lenient_section<S>("What the autotuner knows about the model.")
                                            .option("profile", &S::profile, any(), "Measures the model first.")
                                            .option("num_params", &S::num_params, at_least(1), "Parameters.")
                                            .option("hidden_size", &S::hidden_size, at_least(1), "Hidden size.")
                                            .option("num_layers", &S::num_layers, at_least(1), "Layers.")
                                            .build();
  return kTable;
}

const config::Section& table_of(const AutotuningOptions*) {
  using S = AutotuningOptions;
  static const config::Section kTable =
      lenient_section<S>("Searches for the fastest configuration.")
          .option("enabled", &S::enabled, any(), "Turns the search on.")
          .option("fast", &S::fast, any(), "Tries only the most promising settings.")
          .option("results_dir", &S::results_dir, any(), "Folder for results.")
          .option("exps_dir", &S::exps_dir, any(), "Folder for experiments.")
          .option("overwrite", &S::overwrite, any(), "Replaces old results.")
          .option("metric", &S::metric, one_of({"throughput", "latency", "flops"}), "What is made best.")
          .option("start_profile_step", &S::start_profile_step, at_least(0), "First step that counts.")
          .option("end_profile_step", &S::end_profile_step, at_least(0), "Last step that counts.")
          .option("metric_path", &S::metric_path, any(), "File that an experiment writes its result to.")
          .option("tuner_type", &S::tuner_type, one_of({"gridsearch", "random", "model_based"}), "Kind of search.")
          .option("tuner_early_stopping", &S::tuner_early_stopping, at_least(0),
                  "Trials without improvement before the search ends.")
          .option("tuner_num_trials", &S::tuner_num_trials, at_least(1), "Most trials.")
          .option("arg_mappings", &S::arg_mappings, any(), "Script arguments that stand for configuration keys.")
          .option("model_info", &S::model_info, any(), "What is known about the model.")
          .option("model_info_path", &S::model_info_path, any(), "File with what is known about the model.")
          .option("mp_size", &S::mp_size, at_least(1), "Model-parallel ranks.")
          .option("max_train_batch_size", &S::max_train_batch_size, at_least(1), "Largest train_batch_size.")
          .option("min_train_batch_size", &S::min_train_batch_size, at_least(1), "Smallest train_batch_size.")
          .option("max_train_micro_batch_size_per_gpu", &S::max_train_micro_batch_size_per_gpu, at_least(1),
                  "Largest micro-batch.")
          .option("min_train_micro_batch_size_per_gpu", &S::min_train_micro_batch_size_per_gpu, at_least(1),
                  "Smallest micro-batch.")
          .option("num_tuning_micro_batch_sizes", &S::num_tuning_micro_batch_sizes, at_least(1),
                  "Micro-batch sizes to try.")
          .build();
  return kTable;
}

}  // namespace deepscale
