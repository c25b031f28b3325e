#include "base/environment.h"

#include <charconv>
#include <cstdlib>

#include "base/error.h"

namespace deepscale {

std::optional<std::string> environment(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr || *value == '\0') return std::nullopt;
  return std::string(value);
}

std::optional<int64_t> environment_int(const char* name) {
  const auto text = environment(name);
  if (!text) return std::nullopt;
  int64_t value = 0;
  const auto [end, status] = std::from_chars(text->data(), text->data() + text->size(), value);
  DS_CHECK_AS(ConfigError, status == std::errc() && end == text->data() + text->size(),
              "environment variable {} must be an integer, found \"{}\"; correct or unset it", name, *text);
  return value;
}

}  // namespace deepscale
