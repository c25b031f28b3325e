// A Hugging Face model folder: config.json, and tensors by name out of one or several safetensors files.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/safetensors.h"

namespace deepscale {

/// Values of config.json, with what Transformers takes for keys that are not there. Errors name the file and the key.
class ModelConfig {
 public:
  ModelConfig(std::string path, const nlohmann::json& values);

  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] std::string text(const char* key, std::optional<std::string> fallback = {}) const;
  /// Of at least 1.
  [[nodiscard]] int64_t count(const char* key, std::optional<int64_t> fallback = {}) const;
  [[nodiscard]] double number(const char* key, std::optional<double> fallback = {}) const;
  [[nodiscard]] bool flag(const char* key, bool fallback) const;
  /// Whether the key is there and not null.
  [[nodiscard]] bool has(const char* key) const;
  /// A nested object; empty when it is not there.
  [[nodiscard]] ModelConfig section(const char* key) const;

 private:
  template <typename T>
  [[nodiscard]] T read(const char* key, const char* kind, std::optional<T> fallback) const;

  std::string path_;
  std::map<std::string, std::string> values_;  ///< key -> JSON text
};

class ModelFolder {
 public:
  /// Reads config.json and the headers of the safetensors files. Throws ConfigError, CheckpointError.
  static ModelFolder open(const std::string& folder);

  [[nodiscard]] const ModelConfig& config() const { return config_; }
  [[nodiscard]] bool has(const std::string& name) const { return places_.count(name) > 0; }
  /// Values of a tensor into `destination` (contiguous, CPU, floating, of the tensor's shape), converted where the
  /// dtypes differ, a few MiB at a time: nothing of the tensor's size is taken beside it. Throws CheckpointError naming
  /// the tensor.
  void read(const std::string& name, const at::Tensor& destination);
  [[nodiscard]] int64_t bytes_read() const { return bytes_read_; }

 private:
  struct Place {
    size_t file = 0;
    SafetensorsEntry entry;
  };
  ModelFolder(std::string folder, ModelConfig config) : folder_(std::move(folder)), config_(std::move(config)) {}
  void add_file(const std::string& name);

  std::string folder_;
  ModelConfig config_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, Place> places_;
  int64_t bytes_read_ = 0;
};

}  // namespace deepscale
