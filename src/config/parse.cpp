#include <filesystem>

#include "base/error.h"
#include "config/config_file.h"
#include "config/elasticity.h"
#include "config/json_text.h"
#include "config/problems.h"
#include "config/resolve.h"
#include "config/sections.h"
#include "deepscale/config.h"

namespace deepscale {
namespace {

using config::Json;
using config::Problems;

// Begins with an object, or with a comment before one.
bool looks_like_json(std::string_view text) {
  const size_t first = text.find_first_not_of(" \t\r\n\xef\xbb\xbf");
  if (first == std::string_view::npos) return false;
  text.remove_prefix(first);
  return text.starts_with('{') || text.starts_with('#') || text.starts_with("//") || text.starts_with("/*");
}

template <class ErrorType>
[[noreturn]] void throw_with_path(const std::string& path, const ErrorType& error) {
  const std::string what = error.what();
  if (what.find(path) != std::string::npos) throw ErrorType(what);
  ds_throw<ErrorType>("{}: {}", path, what);
}

void flatten(const Json& value, const std::string& path, std::string& text) {
  if (value.is_object() && !value.empty()) {
    for (const auto& [key, item] : value.items()) flatten(item, config::join_path(path, key), text);
  } else {
    text += path + " = " + config::json_to_text(value) + "\n";
  }
}

}  // namespace

Config Config::parse(std::string_view json_text, int data_parallel_size, ParseMode mode) {
  DS_CHECK_AS(ConfigError, data_parallel_size >= 1, "data_parallel_size must be at least 1, found {}",
              data_parallel_size);
  const Json given = config::parse_json_text(json_text);
  DS_CHECK_AS(ConfigError, given.is_object(),
              "configuration must be an object like {{\"train_batch_size\": 8}}, found {}", config::show(given));
  // Before the rest: the errors of this section have their own class.
  if (mode == ParseMode::kTraining && config::elasticity_enabled(given)) config::read_elasticity(given);
  Problems problems;
  auto state = std::make_shared<State>();
  Options& options = state->options;
  config::read_section(table_of(&options), given, &options, "", {problems, mode == ParseMode::kTraining});
  problems.throw_if_any();

  config::resolve_defaults(options, mode, problems);
  if (mode == ParseMode::kTraining) {
    config::resolve_elasticity(options, given, data_parallel_size, problems);
    config::resolve_batch(options, data_parallel_size, problems);
  }
  config::check_options(options, data_parallel_size, problems);
  config::check_not_built(options, problems);
  problems.throw_if_any();

  state->data_parallel_size = data_parallel_size;
  state->warnings = problems.warnings();
  state->source_json = config::json_to_text(given);
  return Config(std::move(state));
}

Config Config::from_file(const std::string& path, int data_parallel_size, ParseMode mode) {
  try {
    return parse(config::read_config_file(path), data_parallel_size, mode);
  } catch (const ElasticityIncompatibleWorldSize& error) {
    throw_with_path<ElasticityIncompatibleWorldSize>(path, error);
  } catch (const ElasticityConfigError& error) {
    throw_with_path<ElasticityConfigError>(path, error);
  } catch (const ElasticityError& error) {
    throw_with_path<ElasticityError>(path, error);
  } catch (const ConfigError& error) {
    throw_with_path<ConfigError>(path, error);
  }
}

Config Config::open(const std::string& source, int data_parallel_size, ParseMode mode) {
  std::error_code code;
  if (std::filesystem::exists(config::utf8_path(source), code)) return from_file(source, data_parallel_size, mode);
  if (looks_like_json(source)) return parse(source, data_parallel_size, mode);
  if (const auto decoded = config::decode_base64url(source); decoded && looks_like_json(*decoded)) {
    return parse(*decoded, data_parallel_size, mode);
  }
  constexpr size_t kShown = 100;
  ds_throw<ConfigError>(
      "configuration '{}' is neither the path of an existing file, nor JSON text, nor JSON encoded as "
      "base64url",
      source.substr(0, kShown));
}

std::string Config::to_json(int indent) const {
  return config::json_to_text(config::write_section(table_of(&state_->options), &state_->options), indent);
}

std::string Config::to_text() const {
  std::string text;
  flatten(config::write_section(table_of(&state_->options), &state_->options), "", text);
  return text;
}

}  // namespace deepscale
