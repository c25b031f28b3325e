#include "base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include "base/environment.h"
#include "base/error.h"

namespace deepscale {
namespace {

spdlog::level::level_enum to_spdlog(LogLevel level) {
  constexpr spdlog::level::level_enum kLevels[] = {spdlog::level::debug, spdlog::level::info, spdlog::level::warn,
                                                   spdlog::level::err, spdlog::level::off};
  return kLevels[static_cast<int>(level)];
}

}  // namespace

struct Logger::Impl {
  explicit Impl(int rank) : logger("deepscale", std::make_shared<spdlog::sinks::stderr_color_sink_mt>()) {
    logger.set_pattern(fmt::format("[%Y-%m-%d %H:%M:%S.%e] [%^%l%$] [Rank {}] %v", rank));
  }
  spdlog::logger logger;
};

Logger::Logger(int rank) : impl_(std::make_shared<Impl>(rank)) {
  set_level(parse_level(environment("DEEPSCALE_LOG_LEVEL").value_or("warning")));
}

bool Logger::enabled(LogLevel level) const {
  return impl_->logger.should_log(to_spdlog(level));
}
void Logger::set_level(LogLevel level) const {
  impl_->logger.set_level(to_spdlog(level));
}
void Logger::write(LogLevel level, const std::string& message) const {
  impl_->logger.log(to_spdlog(level), message);
}

LogLevel Logger::parse_level(std::string_view name) {
  if (name == "debug") return LogLevel::kDebug;
  if (name == "info") return LogLevel::kInfo;
  if (name == "warning") return LogLevel::kWarning;
  if (name == "error" || name == "critical") return LogLevel::kError;
  if (name == "off") return LogLevel::kOff;
  ds_throw<ConfigError>("log level must be debug, info, warning, error, critical or off, found \"{}\"", name);
}

}  // namespace deepscale
