#include "inference/model_folder.h"

#include <ATen/Functions.h>
#include <c10/core/GradMode.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "comm/communicator.h"
#include "zero/flat_ops.h"

namespace deepscale {
namespace {

using Json = nlohmann::json;
namespace fs = std::filesystem;

// Of a tensor whose dtype is converted, so much is in memory twice.
constexpr int64_t kPieceBytes = int64_t{8} << 20;

Json read_json(const std::string& path) {
  std::ifstream stream(path);
  DS_CHECK_AS(ConfigError, stream.good(), "{} cannot be read: a model folder has config.json and safetensors files",
              path);
  Json values = Json::parse(stream, nullptr, /*allow_exceptions=*/false);
  DS_CHECK_AS(ConfigError, values.is_object(), "{} is not a JSON object", path);
  return values;
}

}  // namespace

ModelConfig::ModelConfig(std::string path, const Json& values) : path_(std::move(path)) {
  for (const auto& [key, value] : values.items()) {
    if (!value.is_null()) values_[key] = value.dump();
  }
}

template <typename T>
T ModelConfig::read(const char* key, const char* kind, std::optional<T> fallback) const {
  const auto found = values_.find(key);
  if (found == values_.end()) {
    DS_CHECK_AS(ConfigError, fallback.has_value(), "{}: \"{}\" is missing; {} is expected", path_, key, kind);
    return *fallback;
  }
  const Json value = Json::parse(found->second);
  const bool fits = std::is_same_v<T, std::string> ? value.is_string()
                    : std::is_same_v<T, bool>      ? value.is_boolean()
                    : std::is_same_v<T, int64_t>   ? value.is_number_integer()
                                                   : value.is_number();
  DS_CHECK_AS(ConfigError, fits, "{}: \"{}\" is {}; {} is expected", path_, key, found->second, kind);
  return value.get<T>();
}

std::string ModelConfig::text(const char* key, std::optional<std::string> fallback) const {
  return read<std::string>(key, "a text", std::move(fallback));
}

int64_t ModelConfig::count(const char* key, std::optional<int64_t> fallback) const {
  const auto value = read<int64_t>(key, "an integer of at least 1", fallback);
  DS_CHECK_AS(ConfigError, value >= 1 && value < (int64_t{1} << 31), "{}: \"{}\" is {}; 1 to 2^31 - 1 is expected",
              path_, key, value);
  return value;
}

double ModelConfig::number(const char* key, std::optional<double> fallback) const {
  return read<double>(key, "a number", fallback);
}

bool ModelConfig::flag(const char* key, bool fallback) const {
  return read<bool>(key, "true or false", fallback);
}

bool ModelConfig::has(const char* key) const {
  return values_.count(key) > 0;
}

ModelConfig ModelConfig::section(const char* key) const {
  const auto found = values_.find(key);
  const Json values = found == values_.end() ? Json::object() : Json::parse(found->second);
  DS_CHECK_AS(ConfigError, values.is_object(), "{}: \"{}\" must be an object", path_, key);
  return ModelConfig(fmt::format("{}, {}", path_, key), values);
}

ModelFolder ModelFolder::open(const std::string& folder) {
  const std::string config = (fs::path(folder) / "config.json").string();
  ModelFolder model(folder, ModelConfig(config, read_json(config)));
  const fs::path index = fs::path(folder) / "model.safetensors.index.json";
  if (!fs::exists(index)) {
    model.add_file("model.safetensors");
    return model;
  }
  const Json values = read_json(index.string());
  const auto map = values.find("weight_map");
  DS_CHECK_AS(CheckpointError, map != values.end() && map->is_object(), "{} has no \"weight_map\"", index.string());
  std::set<std::string> files;
  for (const auto& [name, file] : map->items()) {
    // A file outside of the folder would let a downloaded index read anything.
    const bool plain = file.is_string() && !file.get<std::string>().empty() &&
                       fs::path(file.get<std::string>()).filename() == fs::path(file.get<std::string>());
    DS_CHECK_AS(CheckpointError, plain, "{}: \"{}\" is in {}, which is no name of a file beside it", index.string(),
                name, file.dump());
    files.insert(file.get<std::string>());
  }
  for (const std::string& file : files) model.add_file(file);
  for (const auto& [name, file] : map->items()) {
    DS_CHECK_AS(CheckpointError, model.has(name), "{}: tensor {} is not in {}", index.string(), name,
                file.get<std::string>());
  }
  return model;
}

void ModelFolder::add_file(const std::string& name) {
  files_.push_back(SafetensorsFile::open((fs::path(folder_) / name).string()));
  for (const SafetensorsEntry& entry : files_.back().header().entries) places_[entry.name] = {files_.size() - 1, entry};
}

void ModelFolder::read(const std::string& name, const at::Tensor& destination) {
  const auto found = places_.find(name);
  DS_CHECK_AS(CheckpointError, found != places_.end(), "{}: no tensor {} in its safetensors files", folder_, name);
  const SafetensorsEntry& entry = found->second.entry;
  DS_CHECK_AS(CheckpointError, destination.sizes() == at::IntArrayRef(entry.shape),
              "{}: tensor {} has shape [{}], and config.json says [{}]", folder_, name, fmt::join(entry.shape, ", "),
              fmt::join(destination.sizes(), ", "));
  const at::ScalarType stored = to_scalar_type(entry.dtype);
  DS_CHECK_AS(CheckpointError, at::isFloatingType(stored), "{}: tensor {} has dtype {}, weights are floating", folder_,
              name, c10::toString(stored));
  SafetensorsFile& file = files_[found->second.file];
  const int64_t bytes = entry.end - entry.begin;
  bytes_read_ += bytes;
  if (stored == destination.scalar_type()) {
    if (bytes > 0) file.read(entry, destination.data_ptr());
    return;
  }
  const c10::NoGradGuard no_grad;
  const auto element = static_cast<int64_t>(c10::elementSize(stored));
  const int64_t piece = kPieceBytes / element;
  const at::Tensor buffer = at::empty({std::min(piece, destination.numel())}, at::TensorOptions().dtype(stored));
  const at::Tensor flat = destination.view({-1});
  for (int64_t begin = 0; begin < flat.numel(); begin += piece) {
    const int64_t length = std::min(piece, flat.numel() - begin);
    file.read(entry, begin * element, length * element, buffer.data_ptr());
    flat::copy(flat::slice(buffer, 0, length), flat::slice(flat, begin, length));
  }
}

}  // namespace deepscale
