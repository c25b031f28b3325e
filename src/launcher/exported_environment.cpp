#include "launcher/exported_environment.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "base/error.h"
#include "base/text.h"
#include "launcher/text.h"
#include "platform/files.h"
#include "platform/path_list.h"

namespace deepscale {
namespace {

/// NCCL's and Gloo's settings, Python's, those of MPI libraries and trackers, and our own.
constexpr std::string_view kPrefixes[] = {"NCCL_", "GLOO_", "PYTHON", "MLFLOW", "MV2_",       "UCX_",
                                          "OMP_",  "TORCH", "DS_",    "HF_",    "DEEPSCALE_", "DEEPSPEED_"};
/// Set for every rank by the launcher itself.
constexpr std::string_view kOwn[] = {"DEEPSPEED_RESTART_COUNT"};

bool is_name(std::string_view name) {
  constexpr std::string_view kLetters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_";
  return !name.empty() && name.find_first_not_of(kLetters) == std::string_view::npos &&
         (name[0] < '0' || name[0] > '9');
}

}  // namespace

Variables exported_variables(const Variables& environment, const std::string& working_directory) {
  Variables exported;
  for (const auto& [name, value] : environment) {
    const bool wanted = std::any_of(std::begin(kPrefixes), std::end(kPrefixes),
                                    [&, &key = name](std::string_view prefix) { return key.starts_with(prefix); });
    const bool own = std::find(std::begin(kOwn), std::end(kOwn), name) != std::end(kOwn);
    if (wanted && !own) exported.emplace(name, value);
  }
  std::string& path = exported["PYTHONPATH"];
  path = path.empty() ? working_directory : working_directory + kPathListSeparator + path;
  return exported;
}

Variables parse_environment_file(std::string_view text, const std::string& path) {
  Variables variables;
  int number = 0;
  for (const std::string& raw : split(text, '\n')) {
    ++number;
    const std::string_view line = trimmed(raw);
    if (line.empty() || line[0] == '#') continue;
    const size_t equals = line.find('=');
    DS_CHECK_AS(ConfigError, equals != std::string_view::npos && is_name(line.substr(0, equals)),
                "{}, line {}: \"{}\"; expected NAME=value", path, number, line);
    std::string_view value = line.substr(equals + 1);
    const bool quoted =
        value.size() >= 2 && value.front() == value.back() && (value.front() == '"' || value.front() == '\'');
    if (quoted) value = value.substr(1, value.size() - 2);
    variables[std::string(line.substr(0, equals))] = value;
  }
  return variables;
}

Variables read_environment_files(const Variables& environment) {
  const auto variable = [&](const char* name) {
    const auto found = environment.find(name);
    return found == environment.end() ? std::string() : found->second;
  };
  const std::string name = variable("DS_ENV_FILE").empty() ? ".deepspeed_env" : variable("DS_ENV_FILE");
  const std::string home = variable("HOME").empty() ? variable("USERPROFILE") : variable("HOME");
  Variables variables;
  for (const std::string& folder : {home, std::string(".")}) {
    const std::string path =
        std::filesystem::path(name).is_absolute() ? name : (std::filesystem::path(folder) / name).string();
    if (folder.empty() || !file_size(path)) continue;
    std::ifstream file(path, std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    DS_CHECK_AS(ConfigError, file.good() || file.eof(), "the environment file {} cannot be read", path);
    for (const auto& [key, value] : parse_environment_file(text, path)) variables[key] = value;
  }
  return variables;
}

}  // namespace deepscale
