// Tables of `inference` (also the configuration of init_inference) and of `weight_quantization`.
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
using config::strict_section;

// Moves a retired top-level key of `inference` to section.key, unless that is given too.
void move_into(Json& object, const Json& value, const std::string& path, Problems& problems, const char* old_name,
               const char* section, const char* key) {
  Json& target = object[section];
  if (target.is_null()) target = Json::object();
  if (!target.is_object() || target.contains(key)) {
    problems.error(config::join_path(path, old_name),
                   fmt::format("cannot be given together with {}.{}, which replaces it; remove it", section, key));
    return;
  }
  target[key] = value;
}

const Retired kMpSize = {"mp_size", "use tensor_parallel.tp_size",
                         [](Json& object, const Json& value, const std::string& path, Problems& problems) {
                           const char* section = object.contains("tp") ? "tp" : "tensor_parallel";
                           move_into(object, value, path, problems, "mp_size", section, "tp_size");
                         }};
const Retired kMpu = {"mpu", "use tensor_parallel.mpu",
                      [](Json& object, const Json& value, const std::string& path, Problems& problems) {
                        const char* section = object.contains("tp") ? "tp" : "tensor_parallel";
                        move_into(object, value, path, problems, "mpu", section, "mpu");
                      }};
const Retired kEpSize = {"ep_size", "use moe.ep_size",
                         [](Json& object, const Json& value, const std::string& path, Problems& problems) {
                           move_into(object, value, path, problems, "ep_size", "moe", "ep_size");
                         }};
const Retired kEpGroup = {"ep_group", "use moe.ep_group",
                          [](Json& object, const Json& value, const std::string& path, Problems& problems) {
                            move_into(object, value, path, problems, "ep_group", "moe", "ep_group");
                          }};
const Retired kEpMpGroup = {"ep_mp_group", "use moe.ep_mp_group",
                            [](Json& object, const Json& value, const std::string& path, Problems& problems) {
                              move_into(object, value, path, problems, "ep_mp_group", "moe", "ep_mp_group");
                            }};
const Retired kMoeExperts = {"moe_experts", "use moe.moe_experts",
                             [](Json& object, const Json& value, const std::string& path, Problems& problems) {
                               move_into(object, value, path, problems, "moe_experts", "moe", "moe_experts");
                             }};
const Retired kMoeType = {"moe_type", "use moe.type",
                          [](Json& object, const Json& value, const std::string& path, Problems& problems) {
                            move_into(object, value, path, problems, "moe_type", "moe", "type");
                          }};
const Retired kReplaceMethod = {"replace_method", "it has no effect; remove it",
                                [](Json&, const Json&, const std::string&, Problems&) {}};

auto inference_options(config::SectionBuilder<InferenceOptions>&& table) {
  using S = InferenceOptions;
  return std::move(table)
      .option("replace_with_kernel_inject", &S::replace_with_kernel_inject, alias("kernel_inject"),
              "Replaces modules by fused kernels.")
      .option("dtype", &S::dtype,
              one_of({"fp16", "half", "float16", "fp32", "float", "float32", "bf16", "bfloat16", "int8",
                      "torch.float16", "torch.half", "torch.float32", "torch.float", "torch.bfloat16", "torch.int8"}),
              "Element type of the model.")
      .option("tensor_parallel", &S::tensor_parallel, alias("tp"), "Tensor parallelism.")
      .option("enable_cuda_graph", &S::enable_cuda_graph, any(), "Captures the forward pass in a CUDA graph.")
      .option("use_triton", &S::use_triton, any(), "Uses Triton kernels.")
      .option("triton_autotune", &S::triton_autotune, any(), "Tunes Triton kernels.")
      .option("zero", &S::zero, any(), "Section zero_optimization for ZeRO-Inference.")
      .option("triangular_masking", &S::triangular_masking, alias("tm"), "Causal attention mask.")
      .option("moe", &S::moe, any(), "Mixture of experts: object or boolean.")
      .option("keep_module_on_host", &S::keep_module_on_host, any(), "Does not move the model to the device.")
      .option("quant", &S::quant, any(), "Quantisation.")
      .option("checkpoint", &S::checkpoint, any(), "Checkpoint description: path or object.")
      .option("base_dir", &S::base_dir, any(), "Folder of the checkpoint's files.")
      .option("set_empty_params", &S::set_empty_params, any(), "Begins with empty parameters.")
      .option("save_mp_checkpoint_path", &S::save_mp_checkpoint_path, any(), "Folder for a partitioned checkpoint.")
      .option("checkpoint_config", &S::checkpoint_config, alias("ckpt_config"), "Where checkpoints are.")
      .option("return_tuple", &S::return_tuple, any(), "Blocks return a tuple.")
      .option("training_mp_size", &S::training_mp_size, at_least(1), "Model-parallel ranks of the checkpoint.")
      .option("injection_policy", &S::injection_policy, alias("injection_dict"),
              "Layers whose output is summed, by block class (from Python only).")
      .option("max_out_tokens", &S::max_out_tokens, at_least(1).alias("max_tokens"), "Longest sequence.")
      .option("min_out_tokens", &S::min_out_tokens, at_least(1).alias("min_tokens"), "Fewest tokens to make room for.")
      .option("transposed_mode", &S::transposed_mode, any(), "Weights are stored transposed.");
}

}  // namespace

const config::Section& table_of(const QuantizedWeightOptions*) {
  using S = QuantizedWeightOptions;
  static const config::Section kTable =
      strict_section<S>("How one kind of weight is quantised.")
          .option("num_bits", &S::num_bits, any(), "Bits: 4 or 8.")
          .option("group_size", &S::group_size, at_least(1), "Elements that share a scale.")
          .option("group_dim", &S::group_dim, at_least(0), "Dim along which groups lie.")
          .option("symmetric", &S::symmetric, any(),
                  "Whether values lie around 0 without a minimum of their own (an addition: the original knows false "
                  "only).")
          .build();
  return kTable;
}

const config::Section& table_of(const WeightQuantizationOptions*) {
  using S = WeightQuantizationOptions;
  static const config::Section kTable =
      strict_section<S>("Quantised weights of ZeRO-Inference.")
          .option("post_init_quant", &S::post_init_quant, any(),
                  "Quantises existing Linear and Embedding layers, by a part of their name.")
          .option("quantized_initialization", &S::quantized_initialization, any(),
                  "Quantises weights while the model is built.")
          .build();
  return kTable;
}

const config::Section& table_of(const InferenceTensorParallelOptions*) {
  using S = InferenceTensorParallelOptions;
  static const config::Section kTable =
      strict_section<S>("Tensor parallelism of inference.")
          .option("enabled", &S::enabled, any(), "Turns tensor parallelism on.")
          .option("tp_size", &S::tp_size, at_least(1), "Ranks that share a layer.")
          .option("tp_grain_size", &S::tp_grain_size, at_least(1), "Multiple to which parts are rounded.")
          .option("mpu", &S::mpu, any(), "Model-parallel unit object (from Python only).")
          .option("tp_group", &S::tp_group, any(), "Process group object (from Python only).")
          .build();
  return kTable;
}

const config::Section& table_of(const InferenceCheckpointOptions*) {
  using S = InferenceCheckpointOptions;
  static const config::Section kTable =
      strict_section<S>("Where checkpoints are.")
          .option("checkpoint_dir", &S::checkpoint_dir, any(), "Folder of the checkpoint.")
          .option("save_mp_checkpoint_path", &S::save_mp_checkpoint_path, any(), "Folder for a partitioned checkpoint.")
          .option("base_dir", &S::base_dir, any(), "Folder of the checkpoint's files.")
          .build();
  return kTable;
}

const config::Section& table_of(const InferenceOptions*) {
  static const config::Section kTable =
      inference_options(strict_section<InferenceOptions>("Inference; also the configuration of init_inference."))
          .retired(kMpSize)
          .retired(kMpu)
          .retired(kEpSize)
          .retired(kEpGroup)
          .retired(kEpMpGroup)
          .retired(kMoeExperts)
          .retired(kMoeType)
          .retired(kReplaceMethod)
          .build();
  return kTable;
}

}  // namespace deepscale
