#include "engine/param_reader.h"

#include <cmath>

#include "base/error.h"
#include "config/json_text.h"

namespace deepscale {

using config::Json;

struct ParamReader::Values {
  Json object;

  /// The value, or null when it is missing or not set.
  const Json* find(const std::string& key) const {
    const auto found = object.find(key);
    if (found == object.end() || found->is_null()) return nullptr;
    if (found->is_string() && found->get<std::string>() == "auto") return nullptr;
    return &*found;
  }
};

namespace {

double as_number(const Json& value, const std::string& where) {
  DS_CHECK_AS(ConfigError, value.is_number(), "{} must be a number, got {}", where, value.dump());
  return value.get<double>();
}

}  // namespace

ParamReader::ParamReader(std::string path, const std::string& json_text)
    : path_(std::move(path)), values_(std::make_unique<Values>()) {
  values_->object = config::parse_json_text(json_text.empty() ? "{}" : json_text);
  if (values_->object.is_null()) values_->object = Json::object();
  DS_CHECK_AS(ConfigError, values_->object.is_object(), "{} must be an object, got {}", path_, values_->object.dump());
}

ParamReader::~ParamReader() = default;

double ParamReader::number(const std::string& key, double fallback) {
  return optional_number(key).value_or(fallback);
}

std::optional<double> ParamReader::optional_number(const std::string& key) {
  known_.insert(key);
  const Json* value = values_->find(key);
  if (value == nullptr) return std::nullopt;
  return as_number(*value, where(key));
}

int64_t ParamReader::count(const std::string& key, int64_t fallback) {
  const auto value = optional_number(key);
  if (!value) return fallback;
  DS_CHECK_AS(ConfigError, *value == std::floor(*value) && std::abs(*value) < 9e15, "{} must be a whole number, got {}",
              where(key), *value);
  return static_cast<int64_t>(*value);
}

bool ParamReader::flag(const std::string& key, bool fallback) {
  known_.insert(key);
  const Json* value = values_->find(key);
  if (value == nullptr) return fallback;
  if (value->is_number_integer()) return value->get<int64_t>() != 0;
  DS_CHECK_AS(ConfigError, value->is_boolean(), "{} must be true or false, got {}", where(key), value->dump());
  return value->get<bool>();
}

std::string ParamReader::text(const std::string& key, const std::string& fallback) {
  known_.insert(key);
  const Json* value = values_->find(key);
  if (value == nullptr) return fallback;
  DS_CHECK_AS(ConfigError, value->is_string(), "{} must be a string, got {}", where(key), value->dump());
  return value->get<std::string>();
}

std::pair<double, double> ParamReader::pair(const std::string& key, std::pair<double, double> fallback) {
  known_.insert(key);
  const Json* value = values_->find(key);
  if (value == nullptr) return fallback;
  DS_CHECK_AS(ConfigError, value->is_array() && value->size() == 2, "{} must be a list of two numbers, got {}",
              where(key), value->dump());
  return {as_number((*value)[0], where(key)), as_number((*value)[1], where(key))};
}

std::vector<double> ParamReader::per_group(const std::string& key, const std::vector<double>& fallback) {
  known_.insert(key);
  const Json* value = values_->find(key);
  if (value == nullptr) return fallback;
  if (!value->is_array()) return std::vector<double>(fallback.size(), as_number(*value, where(key)));
  DS_CHECK_AS(ConfigError, value->size() == fallback.size(),
              "{} has {} values, but the optimizer has {} parameter groups: give one value, or one per group",
              where(key), value->size(), fallback.size());
  std::vector<double> numbers;
  for (const Json& item : *value) numbers.push_back(as_number(item, where(key)));
  return numbers;
}

void ParamReader::require(const std::string& key) {
  DS_CHECK_AS(ConfigError, values_->find(key) != nullptr, "{} is missing: give it a value", where(key));
}

void ParamReader::finish() const {
  for (const auto& [key, value] : values_->object.items()) {
    if (known_.contains(key)) continue;
    const std::string_view near = nearest_name(key, known_);
    ds_throw<ConfigError>("{} is not a parameter of this type{}", where(key),
                          near.empty() ? std::string() : fmt::format(" (did you mean \"{}\"?)", near));
  }
}

}  // namespace deepscale
