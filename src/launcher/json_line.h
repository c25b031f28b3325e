// JSON as one line of UTF-8 text: tickets and messages between the launcher's programs.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace deepscale {

/// Bytes that are no UTF-8 (of paths and variables) become U+FFFD instead of an exception.
inline std::string json_line(const nlohmann::json& value) {
  return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace deepscale
