// Tables of `compression_training`: each technique has shared parameters and named groups of modules.
#include "config/section_builder.h"

namespace deepscale {
namespace {

using config::any;
using config::at_least;
using config::between;
using config::lenient_section;
using config::one_of;
using config::Section;

template <class Params>
Section group_table() {
  using S = CompressionGroup<Params>;
  return lenient_section<S>("One group of modules.")
      .option("params", &S::params, any(), "Parameters of the group.")
      .option("modules", &S::modules, config::any().single(), "Regular expressions over module names.")
      .option("related_modules", &S::related_modules, any(),
              "Modules that are pruned along, one list for each of modules.")
      .build();
}

template <class Shared, class Params>
Section technique_table() {
  using S = CompressionTechnique<Shared, Params>;
  return lenient_section<S>("One compression technique.")
      .option("shared_parameters", &S::shared_parameters, any(), "Settings of all groups.")
      .option("different_groups", &S::different_groups, any(), "Groups of modules, by name.")
      .build();
}

config::Rule quantization_types() {
  return one_of({"symmetric", "asymmetric"});
}

}  // namespace

const Section& table_of(const CompressionGroup<WeightQuantizeParams>*) {
  static const Section kTable = group_table<WeightQuantizeParams>();
  return kTable;
}

const Section& table_of(const CompressionGroup<ActivationQuantizeParams>*) {
  static const Section kTable = group_table<ActivationQuantizeParams>();
  return kTable;
}

const Section& table_of(const CompressionGroup<PruningParams>*) {
  static const Section kTable = group_table<PruningParams>();
  return kTable;
}

const Section& table_of(const CompressionTechnique<WeightQuantizeShared, WeightQuantizeParams>*) {
  static const Section kTable = technique_table<WeightQuantizeShared, WeightQuantizeParams>();
  return kTable;
}

const Section& table_of(const CompressionTechnique<ActivationQuantizeShared, ActivationQuantizeParams>*) {
  static const Section kTable = technique_table<ActivationQuantizeShared, ActivationQuantizeParams>();
  return kTable;
}

const Section& table_of(const CompressionTechnique<SparsePruningShared, PruningParams>*) {
  static const Section kTable = technique_table<SparsePruningShared, PruningParams>();
  return kTable;
}

const Section& table_of(const CompressionTechnique<RowPruningShared, PruningParams>*) {
  static const Section kTable = technique_table<RowPruningShared, PruningParams>();
  return kTable;
}

const Section& table_of(const CompressionTechnique<HeadPruningShared, PruningParams>*) {
  static const Section kTable = technique_table<HeadPruningShared, PruningParams>();
  return kTable;
}

const Section& table_of(const MixedQuantizeOptions*) {
  using S = MixedQuantizeOptions;
  static const Section kTable =
      lenient_section<S>("Mixes quantised and fp16 weights.")
          .option("enabled", &S::enabled, any(), "Turns mixing on.")
          .option("quantize_change_ratio", &S::quantize_change_ratio, between(0, 1), "Change of the mix in each step.")
          .build();
  return kTable;
}

const Section& table_of(const WeightQuantizeShared*) {
  using S = WeightQuantizeShared;
  static const Section kTable =
      lenient_section<S>("Settings of weight quantisation.")
          .option("enabled", &S::enabled, any(), "Turns the technique on.")
          .option("quantizer_kernel", &S::quantizer_kernel, any(), "Uses the fused quantiser.")
          .option("schedule_offset", &S::schedule_offset, at_least(0), "Step at which it begins.")
          .option("quantize_groups", &S::quantize_groups, at_least(1), "Groups of a weight with scales of their own.")
          .option("quantize_verbose", &S::quantize_verbose, any(), "Logs each change.")
          .option("quantization_type", &S::quantization_type, quantization_types(), "Kind of scale.")
          .option("quantize_weight_in_forward", &S::quantize_weight_in_forward, config::alias("quantize_in_forward"),
                  "Quantises in the forward pass: true for fp32 training, false for fp16.")
          .option("rounding", &S::rounding, one_of({"nearest", "stochastic"}), "Kind of rounding.")
          .option("fp16_mixed_quantize", &S::fp16_mixed_quantize, any(), "Mixes quantised and fp16 weights.")
          .build();
  return kTable;
}

const Section& table_of(const WeightQuantizeParams*) {
  using S = WeightQuantizeParams;
  static const Section kTable =
      lenient_section<S>("Parameters of a group.")
          .option("start_bits", &S::start_bits, between(1, 32), "Bits at the start; required.")
          .option("target_bits", &S::target_bits, between(1, 32), "Bits at the end; required.")
          .option("quantization_period", &S::quantization_period, at_least(0), "Steps between two reductions of bits.")
          .build();
  return kTable;
}

const Section& table_of(const ActivationQuantizeShared*) {
  using S = ActivationQuantizeShared;
  static const Section kTable =
      lenient_section<S>("Settings of activation quantisation.")
          .option("enabled", &S::enabled, any(), "Turns the technique on.")
          .option("quantization_type", &S::quantization_type, quantization_types(), "Kind of scale.")
          .option("range_calibration", &S::range_calibration, one_of({"dynamic", "static"}), "How ranges are found.")
          .option("schedule_offset", &S::schedule_offset, at_least(0), "Step at which it begins.")
          .build();
  return kTable;
}

const Section& table_of(const ActivationQuantizeParams*) {
  using S = ActivationQuantizeParams;
  static const Section kTable = lenient_section<S>("Parameters of a group.")
                                    .option("bits", &S::bits, between(4, 8), "Bits: 4 or 8; required.")
                                    .build();
  return kTable;
}

const Section& table_of(const SparsePruningShared*) {
  using S = SparsePruningShared;
  static const Section kTable =
      lenient_section<S>("Settings of sparse pruning.")
          .option("enabled", &S::enabled, any(), "Turns the technique on.")
          .option("method", &S::method, one_of({"l1", "topk", "snip_momentum"}), "How weights are chosen.")
          .option("schedule_offset", &S::schedule_offset, at_least(0), "Step at which it begins.")
          .option("schedule_offset_end", &S::schedule_offset_end, at_least(0),
                  "Step at which it ends; null is schedule_offset.")
          .option("schedule_offset_stride", &S::schedule_offset_stride, at_least(1), "Steps between two choices.")
          .option("block_pattern", &S::block_pattern, any(), "Shape of pruned blocks.")
          .option("dense_ratio", &S::dense_ratio, between(0, 1), "Fraction of weights that is kept.")
          .option("excluded_modules", &S::excluded_modules, any(), "Modules that are left alone.")
          .build();
  return kTable;
}

const Section& table_of(const RowPruningShared*) {
  using S = RowPruningShared;
  static const Section kTable =
      lenient_section<S>("Settings of row or channel pruning.")
          .option("enabled", &S::enabled, any(), "Turns the technique on.")
          .option("method", &S::method, one_of({"l1", "topk"}), "How rows are chosen.")
          .option("schedule_offset", &S::schedule_offset, at_least(0), "Step at which it begins.")
          .build();
  return kTable;
}

const Section& table_of(const HeadPruningShared*) {
  using S = HeadPruningShared;
  static const Section kTable =
      lenient_section<S>("Settings of head pruning.")
          .option("enabled", &S::enabled, any(), "Turns the technique on.")
          .option("method", &S::method, one_of({"topk"}), "How heads are chosen.")
          .option("schedule_offset", &S::schedule_offset, at_least(0), "Step at which it begins.")
          .option("num_heads", &S::num_heads, at_least(1), "Attention heads; required when enabled.")
          .build();
  return kTable;
}

const Section& table_of(const PruningParams*) {
  using S = PruningParams;
  static const Section kTable = lenient_section<S>("Parameters of a group.")
                                    .option("dense_ratio", &S::dense_ratio, between(0, 1), "Fraction that is kept.")
                                    .build();
  return kTable;
}

const Section& table_of(const LayerReductionOptions*) {
  using S = LayerReductionOptions;
  static const Section kTable =
      lenient_section<S>("Initialises a shallower student from a teacher.")
          .option("enabled", &S::enabled, any(), "Turns the technique on.")
          .option("keep_number_layer", &S::keep_number_layer, at_least(1), "Layers of the student.")
          .option("module_name_prefix", &S::module_name_prefix, any(), "Prefix of the layers' names.")
          .option("teacher_layer", &S::teacher_layer, at_least(0), "Layers of the teacher that are copied.")
          .option("other_module_name", &S::other_module_name, any(), "Other modules that are copied.")
          .build();
  return kTable;
}

const Section& table_of(const CompressionOptions*) {
  using S = CompressionOptions;
  static const Section kTable =
      lenient_section<S>("Quantisation, pruning and layer reduction during training.")
          .option("layer_reduction", &S::layer_reduction, any(), "Initialises a shallower student from a teacher.")
          .option("weight_quantization", &S::weight_quantization, any(), "Quantises weights.")
          .option("activation_quantization", &S::activation_quantization, any(), "Quantises activations.")
          .option("sparse_pruning", &S::sparse_pruning, any(), "Sets single weights to zero.")
          .option("row_pruning", &S::row_pruning, any(), "Removes rows of linear layers.")
          .option("head_pruning", &S::head_pruning, any(), "Removes attention heads.")
          .option("channel_pruning", &S::channel_pruning, any(), "Removes channels of convolutions.")
          .build();
  return kTable;
}

}  // namespace deepscale
