// Reads a free-form part of the configuration (optimizer.params, scheduler.params): typed values with defaults, and an
// error for every key that nobody asked for. "auto" and null count as not given. Torch-free.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace deepscale {

class ParamReader {
 public:
  /// path: where the object stands in the configuration, for messages. Throws ConfigError when the text is no object.
  ParamReader(std::string path, const std::string& json_text);
  ~ParamReader();

  /// Throws ConfigError for a value of another type or a fraction where a whole number is needed.
  double number(const std::string& key, double fallback);
  int64_t count(const std::string& key, int64_t fallback);
  bool flag(const std::string& key, bool fallback);
  std::string text(const std::string& key, const std::string& fallback);
  std::pair<double, double> pair(const std::string& key, std::pair<double, double> fallback);
  std::optional<double> optional_number(const std::string& key);

  /// One value per parameter group; the file gives one number or a list with one entry per group.
  std::vector<double> per_group(const std::string& key, const std::vector<double>& fallback);

  /// Throws ConfigError when a required key is missing.
  void require(const std::string& key);
  /// Throws ConfigError naming keys that were given but never read, with the nearest known name.
  void finish() const;

 private:
  struct Values;
  [[nodiscard]] std::string where(const std::string& key) const { return path_ + "." + key; }

  std::string path_;
  std::unique_ptr<Values> values_;
  std::set<std::string> known_;
};

}  // namespace deepscale
