// The tables of all option structs, found by argument type: table_of(static_cast<const ZeroOptions*>(nullptr)).
// Also the names of the enumerations that JSON uses. Each table is defined in a section_*.cpp.
#pragma once

#include <array>
#include <string_view>
#include <utility>

#include "config/table.h"
#include "deepscale/options.h"

namespace deepscale {

// section_root.cpp
const config::Section& table_of(const Options*);
// section_training.cpp
const config::Section& table_of(const OptimizerOptions*);
const config::Section& table_of(const SchedulerOptions*);
const config::Section& table_of(const ActivationCheckpointingOptions*);
const config::Section& table_of(const ParallelWriteOptions*);
const config::Section& table_of(const CheckpointWriterOptions*);
const config::Section& table_of(const CheckpointOptions*);
const config::Section& table_of(const CommsLoggerOptions*);
const config::Section& table_of(const ThroughputTimerOptions*);
const config::Section& table_of(const TimerOptions*);
const config::Section& table_of(const AioOptions*);
// section_precision.cpp
const config::Section& table_of(const Fp16Options*);
const config::Section& table_of(const Bf16Options*);
const config::Section& table_of(const TorchAutocastOptions*);
const config::Section& table_of(const DataTypeOptions*);
// section_zero.cpp
const config::Section& table_of(const ZeroOptions*);
const config::Section& table_of(const OffloadParamOptions*);
const config::Section& table_of(const OffloadOptimizerOptions*);
const config::Section& table_of(const ZenflowOptions*);
const config::Section& table_of(const LeafModuleOptions*);
const config::Section& table_of(const LocoOptions*);
// section_monitor.cpp
const config::Section& table_of(const FileMonitorOptions*);
const config::Section& table_of(const WandbOptions*);
const config::Section& table_of(const CometOptions*);
const config::Section& table_of(const FlopsProfilerOptions*);
const config::Section& table_of(const AutotuningOptions*);
const config::Section& table_of(const ModelInfoOptions*);
// section_parallel.cpp
const config::Section& table_of(const PipelineOptions*);
const config::Section& table_of(const HybridEngineOptions*);
const config::Section& table_of(const TensorParallelOptions*);
const config::Section& table_of(const TensorParallelGroupOptions*);
const config::Section& table_of(const PartitionOptions*);
const config::Section& table_of(const LayerSpecOptions*);
const config::Section& table_of(const ExpertParallelOptions*);
const config::Section& table_of(const CompileOptions*);
const config::Section& table_of(const ElasticityOptions*);
// section_data.cpp
const config::Section& table_of(const DataEfficiencyOptions*);
const config::Section& table_of(const DataSamplingOptions*);
const config::Section& table_of(const CurriculumOptions*);
const config::Section& table_of(const CurriculumMetricOptions*);
const config::Section& table_of(const CurriculumScheduleOptions*);
const config::Section& table_of(const DynamicBatchingOptions*);
const config::Section& table_of(const DataRoutingOptions*);
const config::Section& table_of(const RandomLtdOptions*);
const config::Section& table_of(const RandomLtdScheduleOptions*);
const config::Section& table_of(const RandomLtdScheduleConfigOptions*);
const config::Section& table_of(const LegacyCurriculumOptions*);
// section_legacy.cpp
const config::Section& table_of(const RawSwitch*);
const config::Section& table_of(const ProgressiveLayerDropOptions*);
const config::Section& table_of(const EigenvalueOptions*);
const config::Section& table_of(const SparseAttentionOptions*);
// section_compression.cpp
const config::Section& table_of(const CompressionOptions*);
const config::Section& table_of(const LayerReductionOptions*);
const config::Section& table_of(const MixedQuantizeOptions*);
const config::Section& table_of(const WeightQuantizeShared*);
const config::Section& table_of(const WeightQuantizeParams*);
const config::Section& table_of(const ActivationQuantizeShared*);
const config::Section& table_of(const ActivationQuantizeParams*);
const config::Section& table_of(const SparsePruningShared*);
const config::Section& table_of(const RowPruningShared*);
const config::Section& table_of(const HeadPruningShared*);
const config::Section& table_of(const PruningParams*);
const config::Section& table_of(const CompressionGroup<WeightQuantizeParams>*);
const config::Section& table_of(const CompressionGroup<ActivationQuantizeParams>*);
const config::Section& table_of(const CompressionGroup<PruningParams>*);
const config::Section& table_of(const CompressionTechnique<WeightQuantizeShared, WeightQuantizeParams>*);
const config::Section& table_of(const CompressionTechnique<ActivationQuantizeShared, ActivationQuantizeParams>*);
const config::Section& table_of(const CompressionTechnique<SparsePruningShared, PruningParams>*);
const config::Section& table_of(const CompressionTechnique<RowPruningShared, PruningParams>*);
const config::Section& table_of(const CompressionTechnique<HeadPruningShared, PruningParams>*);
// section_inference.cpp
const config::Section& table_of(const WeightQuantizationOptions*);
const config::Section& table_of(const QuantizedWeightOptions*);
const config::Section& table_of(const InferenceOptions*);
const config::Section& table_of(const InferenceTensorParallelOptions*);
const config::Section& table_of(const InferenceCheckpointOptions*);

namespace config {

/// Spellings of an enumeration's values; the first spelling of a value is the one that is written. Case does not
/// matter.
template <class E>
struct EnumNames;

template <>
struct EnumNames<FloatType> {
  static constexpr std::array<std::pair<std::string_view, FloatType>, 11> kValues = {{
      {"fp32", FloatType::kFp32},
      {"fp16", FloatType::kFp16},
      {"bf16", FloatType::kBf16},
      {"float32", FloatType::kFp32},
      {"float", FloatType::kFp32},
      {"float16", FloatType::kFp16},
      {"half", FloatType::kFp16},
      {"bfloat16", FloatType::kBf16},
      {"torch.float32", FloatType::kFp32},
      {"torch.float16", FloatType::kFp16},
      {"torch.bfloat16", FloatType::kBf16},
  }};
};

template <>
struct EnumNames<GradientReduceOp> {
  static constexpr std::array<std::pair<std::string_view, GradientReduceOp>, 2> kValues = {
      {{"mean", GradientReduceOp::kMean}, {"sum", GradientReduceOp::kSum}}};
};

template <>
struct EnumNames<TagValidation> {
  static constexpr std::array<std::pair<std::string_view, TagValidation>, 3> kValues = {
      {{"Ignore", TagValidation::kIgnore}, {"Warn", TagValidation::kWarn}, {"Fail", TagValidation::kFail}}};
};

template <>
struct EnumNames<OffloadDevice> {
  static constexpr std::array<std::pair<std::string_view, OffloadDevice>, 3> kValues = {
      {{"none", OffloadDevice::kNone}, {"cpu", OffloadDevice::kCpu}, {"nvme", OffloadDevice::kNvme}}};
};

}  // namespace config
}  // namespace deepscale
