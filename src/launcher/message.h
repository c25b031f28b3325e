// What the launcher itself prints: "deepspeed: text" on standard error, by level. A value.
#pragma once

#include <fmt/core.h>

#include <cstdio>
#include <utility>

#include "base/log.h"

namespace deepscale {

class Message {
 public:
  explicit Message(LogLevel level) : level_(level) {}

  template <typename... Args>
  void debug(fmt::format_string<Args...> format, Args&&... args) const {
    print(LogLevel::kDebug, fmt::format(format, std::forward<Args>(args)...));
  }
  template <typename... Args>
  void info(fmt::format_string<Args...> format, Args&&... args) const {
    print(LogLevel::kInfo, fmt::format(format, std::forward<Args>(args)...));
  }
  template <typename... Args>
  void warning(fmt::format_string<Args...> format, Args&&... args) const {
    print(LogLevel::kWarning, "warning: " + fmt::format(format, std::forward<Args>(args)...));
  }
  template <typename... Args>
  void error(fmt::format_string<Args...> format, Args&&... args) const {
    print(LogLevel::kError, fmt::format(format, std::forward<Args>(args)...));
  }

 private:
  void print(LogLevel level, const std::string& text) const {
    if (level >= level_) fmt::print(stderr, "deepspeed: {}\n", text);
  }

  LogLevel level_;
};

}  // namespace deepscale
