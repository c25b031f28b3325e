// Collects what is wrong with a configuration, so that one error names everything at once.
#pragma once

#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "config/json_text.h"

namespace deepscale::config {

class Problems {
 public:
  /// path: dotted JSON path, empty for the whole file. text: found, expected, remedy.
  void error(std::string_view path, std::string_view text);
  /// Each distinct sentence is kept once.
  void warn(std::string_view path, std::string_view text);

  bool ok() const { return errors_.empty(); }
  /// More than anybody reads: what is added needs no search for a remedy.
  bool crowded() const { return errors_.size() + warnings_.size() > 1000; }
  const std::vector<std::string>& warnings() const { return warnings_; }

  /// Throws ConfigError when there are errors.
  void throw_if_any() const;

 private:
  std::vector<std::string> errors_;
  std::vector<std::string> warnings_;
  std::set<std::string> known_warnings_;
};

/// "zero_optimization" + "stage" -> "zero_optimization.stage".
std::string join_path(std::string_view path, std::string_view key);

/// The value as an error message shows it: short, one line.
std::string show(const Json& value);

}  // namespace deepscale::config
