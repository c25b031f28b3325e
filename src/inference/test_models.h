// Small model folders with random weights, for tests.
#pragma once

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "checkpoint/safetensors.h"
#include "comm/communicator.h"

namespace deepscale::test {

/// A folder that goes with its object.
class Folder {
 public:
  explicit Folder(const std::string& name) {
    static std::atomic<int> count = 0;
    path_ = std::filesystem::temp_directory_path() /
            ("deepscale_" + name + "_" + std::to_string(reinterpret_cast<uintptr_t>(this)) + std::to_string(count++));
    std::filesystem::create_directories(path_);
  }
  ~Folder() {
    // Not remove_all: libtorch exports one of its own that crashes.
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator(path_, ignored)) {
      std::filesystem::remove(entry.path(), ignored);
    }
    std::filesystem::remove(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  [[nodiscard]] std::string path() const { return path_.string(); }
  [[nodiscard]] std::string file(const std::string& name) const { return (path_ / name).string(); }
  void write(const std::string& name, const std::string& text) const { std::ofstream(file(name)) << text; }

 private:
  std::filesystem::path path_;
};

using Tensors = std::map<std::string, at::Tensor>;

inline void write_tensors(const std::string& path, const Tensors& tensors) {
  std::vector<SafetensorsItem> items;
  for (const auto& [name, tensor] : tensors) {
    items.push_back({name, to_dtype(tensor.scalar_type()), tensor.sizes().vec(), tensor.const_data_ptr()});
  }
  write_safetensors(path, items, {{"format", "pt"}});
}

inline nlohmann::json llama_config() {
  return {{"model_type", "llama"},        {"vocab_size", 40},        {"hidden_size", 32},
          {"intermediate_size", 48},      {"num_hidden_layers", 3},  {"num_attention_heads", 4},
          {"num_key_value_heads", 2},     {"rms_norm_eps", 1e-5},    {"max_position_embeddings", 64},
          {"tie_word_embeddings", false}, {"torch_dtype", "float32"}};
}

inline Tensors llama_tensors(at::ScalarType dtype = at::kFloat) {
  at::manual_seed(11);
  Tensors made;
  const auto add = [&](const std::string& name, std::vector<int64_t> shape) {
    const at::Tensor values = at::randn(shape) * (shape.size() == 1 ? 0.1 : 0.2);
    made[name] = (shape.size() == 1 ? values + 1 : values).to(dtype);
  };
  add("model.embed_tokens.weight", {40, 32});
  for (int l = 0; l < 3; ++l) {
    const std::string root = "model.layers." + std::to_string(l) + ".";
    add(root + "input_layernorm.weight", {32});
    add(root + "post_attention_layernorm.weight", {32});
    add(root + "self_attn.q_proj.weight", {32, 32});
    add(root + "self_attn.k_proj.weight", {16, 32});
    add(root + "self_attn.v_proj.weight", {16, 32});
    add(root + "self_attn.o_proj.weight", {32, 32});
    add(root + "mlp.gate_proj.weight", {48, 32});
    add(root + "mlp.up_proj.weight", {48, 32});
    add(root + "mlp.down_proj.weight", {32, 48});
  }
  add("model.norm.weight", {32});
  add("lm_head.weight", {40, 32});
  return made;
}

}  // namespace deepscale::test
