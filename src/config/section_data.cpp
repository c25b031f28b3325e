// Tables of `data_efficiency` and the old top-level curriculum.
#include "config/section_builder.h"

namespace deepscale {
namespace {

using config::any;
using config::at_least;
using config::lenient_section;
using config::one_of;

config::Rule schedule_types() {
  return one_of({"fixed_linear", "fixed_root", "fixed_discrete", "custom"});
}

}  // namespace

const config::Section& table_of(const CurriculumScheduleOptions*) {
  using S = CurriculumScheduleOptions;
  static const config::Section kTable =
      lenient_section<S>("How difficulty grows with steps.")
          .option("total_curriculum_step", &S::total_curriculum_step, at_least(1), "Step of the greatest difficulty.")
          .option("difficulty_step", &S::difficulty_step, at_least(1), "Multiple to which difficulty is rounded.")
          .option("root_degree", &S::root_degree, at_least(0), "Degree of the root in fixed_root.")
          .option("difficulty", &S::difficulty, any(), "Difficulties of fixed_discrete.")
          .option("max_step", &S::max_step, any(), "Last steps of these difficulties.")
          .build();
  return kTable;
}

const config::Section& table_of(const CurriculumMetricOptions*) {
  using S = CurriculumMetricOptions;
  static const config::Section kTable =
      lenient_section<S>("One metric of difficulty.")
          .option("index_to_sample_path", &S::index_to_sample_path, any(), "Index from metric values to samples.")
          .option("index_to_metric_path", &S::index_to_metric_path, any(), "Index from samples to metric values.")
          .option("difficulty_type", &S::difficulty_type, one_of({"value", "percentile"}), "Unit of difficulty.")
          .option("clustering_type", &S::clustering_type, one_of({"single_cluster", "schedule_based"}),
                  "How samples are clustered.")
          .option("min_difficulty", &S::min_difficulty, any(), "Difficulty at the start.")
          .option("max_difficulty", &S::max_difficulty, any(), "Difficulty at the end.")
          .option("schedule_type", &S::schedule_type, schedule_types(), "How difficulty grows.")
          .option("schedule_config", &S::schedule_config, any(), "Parameters of the schedule.")
          .build();
  return kTable;
}

const config::Section& table_of(const CurriculumOptions*) {
  using S = CurriculumOptions;
  static const config::Section kTable =
      lenient_section<S>("Samples in order of difficulty.")
          .option("enabled", &S::enabled, any(), "Turns the curriculum on.")
          .option("data_cluster_path", &S::data_cluster_path, any(), "Folder of the clusters.")
          .option("curriculum_metrics", &S::curriculum_metrics, any(), "The metrics, by name.")
          .build();
  return kTable;
}

const config::Section& table_of(const DynamicBatchingOptions*) {
  using S = DynamicBatchingOptions;
  static const config::Section kTable =
      lenient_section<S>("Batches of about equal numbers of tokens.")
          .option("enabled", &S::enabled, any(), "Turns dynamic batching on.")
          .option("max_tokens", &S::max_tokens, at_least(1), "Most tokens of a batch; required when enabled.")
          .option("lr_scaling_method", &S::lr_scaling_method, one_of({"linear", "sqrt", "none"}),
                  "How the learning rate follows the batch size.")
          .option("min_batch_size", &S::min_batch_size, at_least(1), "Smallest batch.")
          .option("max_batch_size", &S::max_batch_size, at_least(1), "Largest batch.")
          .option("sequence_picking_order", &S::sequence_picking_order, one_of({"dataloader", "random", "seqlen"}),
                  "Order in which samples are taken.")
          .option("metrics_path", &S::metrics_path, any(), "Folder of sample lengths.")
          .option("verbose", &S::verbose, any(), "Logs each batch.")
          .build();
  return kTable;
}

const config::Section& table_of(const DataSamplingOptions*) {
  using S = DataSamplingOptions;
  static const config::Section kTable =
      lenient_section<S>("Which samples come when.")
          .option("enabled", &S::enabled, any(), "Turns data sampling on.")
          .option("num_epochs", &S::num_epochs, at_least(1), "Most passes over the data.")
          .option("num_workers", &S::num_workers, at_least(0), "Workers of the data loader.")
          .option("pin_memory", &S::pin_memory, any(), "Page-locks batches.")
          .option("curriculum_learning", &S::curriculum_learning, any(), "Samples in order of difficulty.")
          .option("dynamic_batching", &S::dynamic_batching, any(), "Batches of about equal numbers of tokens.")
          .build();
  return kTable;
}

const config::Section& table_of(const RandomLtdScheduleConfigOptions*) {
  using S = RandomLtdScheduleConfigOptions;
  static const config::Section kTable =
      lenient_section<S>("Parameters of the schedule.")
          .option("require_steps", &S::require_steps, at_least(1), "Steps until all tokens are kept.")
          .option("seq_per_step", &S::seq_per_step, at_least(1), "Tokens added at a time.")
          .build();
  return kTable;
}

const config::Section& table_of(const RandomLtdScheduleOptions*) {
  using S = RandomLtdScheduleOptions;
  static const config::Section kTable =
      lenient_section<S>("How the number of kept tokens grows.")
          .option("min_value", &S::min_value, at_least(1), "Tokens kept at the start.")
          .option("max_value", &S::max_value, at_least(1), "Tokens kept at the end.")
          .option("schedule_type", &S::schedule_type, one_of({"fixed_linear"}), "How the number grows.")
          .option("schedule_config", &S::schedule_config, any(), "Parameters of the schedule.")
          .build();
  return kTable;
}

const config::Section& table_of(const RandomLtdOptions*) {
  using S = RandomLtdOptions;
  static const config::Section kTable =
      lenient_section<S>("Random layer-wise token dropping.")
          .option("enabled", &S::enabled, any(), "Turns token dropping on.")
          .option("total_layer_num", &S::total_layer_num, at_least(1), "Layers of the model.")
          .option("random_ltd_layer_num", &S::random_ltd_layer_num, at_least(0), "Layers that drop tokens.")
          .option("random_ltd_layer_id", &S::random_ltd_layer_id, at_least(0), "Their indices.")
          .option("model_mask_name", &S::model_mask_name, any(), "Name of the attention-mask argument.")
          .option("model_type", &S::model_type, one_of({"encoder", "decoder"}), "Kind of model.")
          .option("hidden_state_order", &S::hidden_state_order, one_of({"batch_seq_dim", "seq_batch_dim"}),
                  "Order of the hidden state's dims.")
          .option("random_ltd_schedule", &S::random_ltd_schedule, any(), "How the number of kept tokens grows.")
          .option("layer_token_lr_schedule", &S::layer_token_lr_schedule, any(),
                  "Learning rate by consumed tokens; must stay off.")
          .build();
  return kTable;
}

const config::Section& table_of(const DataRoutingOptions*) {
  using S = DataRoutingOptions;
  static const config::Section kTable = lenient_section<S>("Which tokens go through which layers.")
                                            .option("enabled", &S::enabled, any(), "Turns data routing on.")
                                            .option("random_ltd", &S::random_ltd, any(), "Random token dropping.")
                                            .build();
  return kTable;
}

const config::Section& table_of(const DataEfficiencyOptions*) {
  using S = DataEfficiencyOptions;
  static const config::Section kTable =
      lenient_section<S>("Curriculum learning, dynamic batching and token dropping.")
          .option("enabled", &S::enabled, any(), "Turns the section on.")
          .option("seed", &S::seed, any(), "Seed of the sampling.")
          .option("data_sampling", &S::data_sampling, any(), "Which samples come when.")
          .option("data_routing", &S::data_routing, any(), "Which tokens go through which layers.")
          .build();
  return kTable;
}

const config::Section& table_of(const LegacyCurriculumOptions*) {
  using S = LegacyCurriculumOptions;
  static const config::Section kTable =
      lenient_section<S>("The old curriculum over sequence lengths.")
          .option("enabled", &S::enabled, any(), "Turns the curriculum on.")
          .option("curriculum_type", &S::curriculum_type, one_of({"seqlen"}), "Metric of difficulty.")
          .option("min_difficulty", &S::min_difficulty, at_least(1), "Difficulty at the start.")
          .option("max_difficulty", &S::max_difficulty, at_least(1), "Difficulty at the end.")
          .option("schedule_type", &S::schedule_type, schedule_types(), "How difficulty grows.")
          .option("schedule_config", &S::schedule_config, any(), "Parameters of the schedule.")
          .build();
  return kTable;
}

}  // namespace deepscale
