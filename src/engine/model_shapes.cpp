#include "engine/model_shapes.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "base/checked_math.h"
#include "base/error.h"
#include "base/shape.h"
#include "checkpoint/safetensors.h"
#include "config/config_file.h"
#include "config/json_text.h"

namespace deepscale {
namespace {

namespace fs = std::filesystem;
using config::Json;

constexpr std::string_view kIndexSuffix = ".safetensors.index.json";

std::string owner_of(const std::string& name) {
  const size_t dot = name.rfind('.');
  return dot == std::string::npos ? "" : name.substr(0, dot);
}

/// Tensors of old files that no parameter of the model answers to.
bool is_buffer(const SafetensorsEntry& entry) {
  constexpr std::string_view kBuffers[] = {".inv_freq", ".masked_bias", ".attn.bias", ".attention.bias"};
  const bool integer =
      entry.dtype != DType::kFloat32 && entry.dtype != DType::kBFloat16 && entry.dtype != DType::kFloat16;
  return integer || std::any_of(std::begin(kBuffers), std::end(kBuffers), [&](std::string_view suffix) {
           // A mask has four dimensions; a parameter of that name would have one.
           return entry.name.ends_with(suffix) && (suffix == ".inv_freq" || entry.shape.size() != 1);
         });
}

void add_file(const fs::path& path, ModelShapes& shapes) {
  const SafetensorsFile file = SafetensorsFile::open(path.string());
  for (const SafetensorsEntry& entry : file.header().entries) {
    if (is_buffer(entry)) continue;
    shapes.params.push_back({entry.name, entry.shape, entry.dtype, true, owner_of(entry.name)});
  }
}

Json parse_file(const std::string& text, const std::string& path) {
  try {
    return config::parse_json_text(text);
  } catch (const ConfigError& error) {
    ds_throw<ConfigError>("{}, the index of the model's weights: {}", path, error.what());
  }
}

std::set<std::string> files_of_index(const std::string& path) {
  const Json index = parse_file(config::read_config_file(path, "index of weights"), path);
  DS_CHECK_AS(CheckpointError, index.is_object() && index.contains("weight_map") && index["weight_map"].is_object(),
              "{} has no \"weight_map\": it is no index of safetensors files", path);
  std::set<std::string> files;
  for (const auto& [name, file] : index["weight_map"].items()) {
    DS_CHECK_AS(CheckpointError, file.is_string(), "{}: the file of {} is not a text", path, name);
    files.insert(file.get<std::string>());
  }
  return files;
}

}  // namespace

int64_t ParamShape::numel() const {
  return numel_of(shape);
}

int64_t ModelShapes::numel() const {
  int64_t sum = 0;
  for (const ParamShape& param : params) sum += param.numel();
  return sum;
}

void check_total(const ModelShapes& shapes) {
  int64_t total = 0;
  for (const ParamShape& param : shapes.params) {
    std::optional<int64_t> numel = 1;
    for (const int64_t size : param.shape) numel = numel ? checked_product(*numel, size) : numel;
    const std::optional<int64_t> sum = numel ? checked_sum(total, *numel) : std::nullopt;
    DS_CHECK_AS(ConfigError, sum && *sum <= kMostModelElements,
                "{}: with {} of shape [{}] the model has more than 2^45 elements, which is no model; correct its sizes",
                shapes.source, param.name, fmt::join(param.shape, ", "));
    total = *sum;
  }
}

ModelShapes shapes_from_safetensors(const std::string& path) {
  ModelShapes shapes;
  shapes.source = path;
  const fs::path at = config::utf8_path(path);
  if (path.ends_with(kIndexSuffix)) {
    for (const std::string& file : files_of_index(path)) {
      const fs::path relative = config::utf8_path(file);
      DS_CHECK_AS(CheckpointError, relative.filename() == relative && !relative.empty(),
                  "{} names the file \"{}\", which is not beside it", path, file);
      add_file(at.parent_path() / relative, shapes);
    }
  } else {
    add_file(at, shapes);
  }
  DS_CHECK_AS(CheckpointError, !shapes.params.empty(), "{} holds no floating-point tensor", path);
  check_total(shapes);
  return shapes;
}

ModelShapes read_model_shapes(const std::string& path) {
  std::error_code ignored;
  const fs::path at = config::utf8_path(path);
  if (fs::is_directory(at, ignored)) {
    for (const char* name : {"model.safetensors.index.json", "model.safetensors", "config.json"}) {
      const fs::path inside = at / name;
      if (fs::exists(inside, ignored)) return read_model_shapes(inside.string());
    }
    ds_throw<ConfigError>(
        "{} has neither config.json nor model.safetensors nor model.safetensors.index.json: name the folder of a "
        "Hugging Face model",
        path);
  }
  if (path.ends_with(".safetensors") || path.ends_with(kIndexSuffix)) return shapes_from_safetensors(path);
  return shapes_from_config(config::read_config_file(path, "the model's configuration"), path);
}

}  // namespace deepscale
