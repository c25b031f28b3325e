#include "config/config_file.h"

#include <cstdint>
#include <fstream>
#include <sstream>
#include <system_error>

#include "base/error.h"

namespace deepscale::config {

std::filesystem::path utf8_path(const std::string& text) {
  try {
    return std::filesystem::path(std::u8string(text.begin(), text.end()));
  } catch (const std::system_error&) {
    return {};  // Windows converts names to UTF-16, and this is no UTF-8
  }
}

std::string read_config_file(const std::string& name, std::string_view kind) {
  constexpr std::uintmax_t kMaxFileBytes = 16 * 1024 * 1024;
  const std::filesystem::path path = utf8_path(name);
  std::error_code code;
  DS_CHECK_AS(ConfigError, std::filesystem::is_regular_file(path, code),
              "{} '{}' does not exist or is not a file; check the path", kind, name);
  const std::uintmax_t size = std::filesystem::file_size(path, code);
  DS_CHECK_AS(ConfigError, !code && size <= kMaxFileBytes, "{} '{}' is larger than {} bytes; is it a configuration?",
              kind, name, kMaxFileBytes);
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  DS_CHECK_AS(ConfigError, file.good() || size == 0, "{} '{}' cannot be read; check its permissions", kind, name);
  return text.str();
}

}  // namespace deepscale::config
