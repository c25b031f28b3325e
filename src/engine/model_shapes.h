// The parameters of a model as names, shapes and dtypes, without the model: from a Hugging Face config.json, or from
// the headers of safetensors files. For memory plans. Torch-free. Threads: any.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"

namespace deepscale {

struct ParamShape {
  std::string name;  ///< dotted name in the model
  std::vector<int64_t> shape;
  DType dtype = DType::kFloat32;  ///< as loaded, before a 16-bit mode converts it
  bool trainable = true;
  /// The module that gathers it: the one that owns it, or the leaf module above (zero_optimization.leaf_module). Empty:
  /// none, the parameter is never sharded.
  std::string unit;
  bool tied = false;  ///< used in two places, so that autograd adds two gradients up

  [[nodiscard]] int64_t numel() const;
};

struct ModelShapes {
  std::string source;              ///< for messages
  std::vector<ParamShape> params;  ///< in the order of the model; tied parameters once

  [[nodiscard]] int64_t numel() const;
};

/// More elements than any model has, and few enough that the bytes of a host can be counted in 64 bits.
inline constexpr int64_t kMostModelElements = int64_t{1} << 45;

/// Throws ConfigError naming the source and the parameter with which there are more than kMostModelElements.
void check_total(const ModelShapes& shapes);

/// Families that shapes_from_config() knows, by "model_type".
const std::vector<std::string_view>& known_model_types();

/// The parameters that Transformers' causal language model of this configuration has. Throws ConfigError naming the key
/// that is missing or impossible (also: more than 10,000 layers), and for a model_type that is not known the ones that
/// are.
ModelShapes shapes_from_config(const std::string& json_text, const std::string& source);

/// The tensors of a .safetensors file, or of the files that a *.safetensors.index.json names (beside it). Integers and
/// the buffers that old files hold (inv_freq, attention masks) are left out. Throws CheckpointError.
ModelShapes shapes_from_safetensors(const std::string& path);

/// What `path` names: a config.json, a .safetensors file or its index, or a folder with any of them (weights first,
/// because they say what there is). Throws ConfigError for none of these.
ModelShapes read_model_shapes(const std::string& path);

}  // namespace deepscale
