// Rank-aware log of the native core, to standard error, level WARNING by default (DEEPSCALE_LOG_LEVEL changes it).
// A Logger is a value handle: the engine owns one and hands it down. Threads: all methods may be called from any
// thread.
#pragma once

#include <fmt/core.h>

#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace deepscale {

enum class LogLevel { kDebug, kInfo, kWarning, kError, kOff };

class Logger {
 public:
  /// Writes lines as "[time] [LEVEL] [Rank r] message". Throws ConfigError for an unknown DEEPSCALE_LOG_LEVEL.
  explicit Logger(int rank = 0);

  template <typename... Args>
  void debug(fmt::format_string<Args...> format, Args&&... args) const {
    if (enabled(LogLevel::kDebug)) write(LogLevel::kDebug, fmt::format(format, std::forward<Args>(args)...));
  }
  template <typename... Args>
  void info(fmt::format_string<Args...> format, Args&&... args) const {
    if (enabled(LogLevel::kInfo)) write(LogLevel::kInfo, fmt::format(format, std::forward<Args>(args)...));
  }
  template <typename... Args>
  void warning(fmt::format_string<Args...> format, Args&&... args) const {
    if (enabled(LogLevel::kWarning)) write(LogLevel::kWarning, fmt::format(format, std::forward<Args>(args)...));
  }
  template <typename... Args>
  void error(fmt::format_string<Args...> format, Args&&... args) const {
    if (enabled(LogLevel::kError)) write(LogLevel::kError, fmt::format(format, std::forward<Args>(args)...));
  }

  [[nodiscard]] bool enabled(LogLevel level) const;
  void set_level(LogLevel level) const;
  void write(LogLevel level, const std::string& message) const;

  /// "debug", "info", "warning", "error", "critical" or "off". Throws ConfigError for anything else.
  static LogLevel parse_level(std::string_view name);

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace deepscale
