// Tables of the smaller sections of the training core.
#include "config/section_builder.h"

namespace deepscale {
namespace {

using config::any;
using config::at_least;
using config::lenient_section;
using config::one_of;
using config::strict_section;

}  // namespace

const config::Section& table_of(const OptimizerOptions*) {
  using S = OptimizerOptions;
  static const config::Section kTable =
      lenient_section<S>(
          "The optimizer, unless the program passes one. Native: Adam, AdamW, Lion, Adagrad, Lamb, SGD, Muon (any "
          "case); "
          "otherwise the exact name of a class of torch.optim. Type Adam decouples weight decay unless params has "
          "adam_w_mode false.")
          .option("type", &S::type, any(), "Name of the optimizer.")
          .option("params", &S::params, config::any().null_default(),
                  "Arguments of its constructor; those that are still \"auto\" are left out.")
          .option("legacy_fusion", &S::legacy_fusion, any(), "Accepted for old configurations; has no effect here.")
          .build();
  return kTable;
}

const config::Section& table_of(const SchedulerOptions*) {
  using S = SchedulerOptions;
  static const config::Section kTable =
      lenient_section<S>(
          "The learning-rate schedule, unless the program passes one: WarmupLR, WarmupDecayLR, WarmupCosineLR, "
          "LRRangeTest, OneCycle or a class of torch.optim.lr_scheduler.")
          .option("type", &S::type, any(), "Name of the schedule.")
          .option("params", &S::params, config::any().null_default(),
                  "Arguments of its constructor; those that are still \"auto\" are left out.")
          .build();
  return kTable;
}

const config::Section& table_of(const ActivationCheckpointingOptions*) {
  using S = ActivationCheckpointingOptions;
  static const config::Section kTable =
      lenient_section<S>("What deepspeed.checkpointing does with the activations it saves.")
          .option("partition_activations", &S::partition_activations, any(),
                  "Shards saved activations over model-parallel ranks.")
          .option("number_checkpoints", &S::number_checkpoints, at_least(1),
                  "Checkpoints in one forward pass; needed for contiguous memory.")
          .option("contiguous_memory_optimization", &S::contiguous_memory_optimization, any(),
                  "Saves partitioned activations in one buffer; needs partition_activations and number_checkpoints.")
          .option("synchronize_checkpoint_boundary", &S::synchronize_checkpoint_boundary, any(),
                  "Synchronises the device at each checkpoint.")
          .option("profile", &S::profile, any(), "Logs forward and backward time of each checkpoint.")
          .option("cpu_checkpointing", &S::cpu_checkpointing, any(), "Moves saved activations to host memory.")
          .build();
  return kTable;
}

const config::Section& table_of(const ParallelWriteOptions*) {
  using S = ParallelWriteOptions;
  static const config::Section kTable =
      lenient_section<S>("Who writes a checkpoint's layers.")
          .option("pipeline_stage", &S::pipeline_stage, any(), "Ranks of a pipeline stage share the writing.")
          .build();
  return kTable;
}

const config::Section& table_of(const CheckpointWriterOptions*) {
  using S = CheckpointWriterOptions;
  static const config::Section kTable =
      lenient_section<S>("An asynchronous checkpoint writer.")
          .option("type", &S::type, one_of({"MOCK", "PYTHON", "FAST"}).any_case(), "Kind of writer.")
          .option("io_buffer_size", &S::io_buffer_size, at_least(1), "Bytes of its buffer.")
          .option("io_buffer_double", &S::io_buffer_double, any(), "Uses two buffers in turn.")
          .option("show_statistics", &S::show_statistics, any(), "Logs its throughput.")
          .option("data_parallel", &S::data_parallel, one_of({"REPLICA", "SOCKET", "MACHINE"}).any_case(),
                  "Which replicas share the writing.")
          .option("decoupled", &S::decoupled, any(), "Writes while training goes on.")
          .option("io_multiplier", &S::io_multiplier, at_least(1), "Writers for each replica.")
          .build();
  return kTable;
}

const config::Section& table_of(const CheckpointOptions*) {
  using S = CheckpointOptions;
  static const config::Section kTable =
      lenient_section<S>("How checkpoints are written and read.")
          .option("tag_validation", &S::tag_validation, any(), "What happens when ranks use different tags.")
          .option("load_universal", &S::load_universal, any(), "Reads a universal checkpoint.")
          .option("use_node_local_storage", &S::use_node_local_storage, any(),
                  "Every machine has its own disk, so each writes what its ranks will read.")
          .option("parallel_write", &S::parallel_write, any(), "Who writes a checkpoint's layers.")
          .option("checkpoint_serialization", &S::checkpoint_serialization, any(),
                  "Writes through torch's serialization.")
          .option("writer", &S::writer, any(), "An asynchronous checkpoint writer: with `decoupled`, as `async_save`.")
          .option("format", &S::format, one_of({"deepspeed", "native"}).any_case(),
                  "What is written: DeepSpeed's files, or safetensors with a manifest. Both are read whatever is set.")
          .option("async_save", &S::async_save, any(),
                  "Training waits for a copy of the state alone; writing goes on beside it.")
          .option("keep_last", &S::keep_last, at_least(0),
                  "Checkpoints that are kept; older ones are removed. 0 is all.")
          .option("load_data_position", &S::load_data_position, any(),
                  "Loading puts the engine's training data loader where it stood when the checkpoint was saved.")
          .build();
  return kTable;
}

const config::Section& table_of(const CommsLoggerOptions*) {
  using S = CommsLoggerOptions;
  static const config::Section kTable =
      strict_section<S>("Counts and times collectives (deepspeed.comm.log_summary).")
          .option("enabled", &S::enabled, any(), "Turns the log on.")
          .option("prof_all", &S::prof_all, any(), "Logs every operation.")
          .option("prof_ops", &S::prof_ops, any(), "Names of the operations to log when prof_all is false.")
          .option("verbose", &S::verbose, any(), "Prints each collective as it happens.")
          .option("debug", &S::debug, any(), "Adds the caller's name to each line.")
          .build();
  return kTable;
}

const config::Section& table_of(const ThroughputTimerOptions*) {
  using S = ThroughputTimerOptions;
  static const config::Section kTable =
      strict_section<S>("The throughput line that steps_per_print prints.")
          .option("enabled", &S::enabled, any(), "Measures samples per second.")
          .option("synchronized", &S::synchronized, any(), "Synchronises the device around the measurement.")
          .build();
  return kTable;
}

const config::Section& table_of(const TimerOptions*) {
  using S = TimerOptions;
  static const config::Section kTable =
      strict_section<S>("Timers.")
          .option("throughput", &S::throughput, any(), "The throughput line that steps_per_print prints.")
          .build();
  return kTable;
}

const config::Section& table_of(const AioOptions*) {
  using S = AioOptions;
  static const config::Section kTable =
      lenient_section<S>("Asynchronous file input and output.")
          .option("block_size", &S::block_size, at_least(1),
                  "Bytes of one request. Without this and `queue_depth`: what suits the disk.")
          .option("queue_depth", &S::queue_depth, at_least(1),
                  "Requests under way at a time. Without this and `block_size`: what suits the disk.")
          .option("intra_op_parallelism", &S::intra_op_parallelism, at_least(1).alias("thread_count"),
                  "Threads that share one read or write.")
          .option("single_submit", &S::single_submit, any(), "Submits requests one by one.")
          .option("overlap_events", &S::overlap_events, any(), "Submits new requests while waiting for old ones.")
          .option("use_gds", &S::use_gds, any(), "Reads and writes GPU memory directly (GPUDirect Storage).")
          .build();
  return kTable;
}

}  // namespace deepscale
