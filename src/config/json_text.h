// Configuration text to JSON values and back.
// Accepted beyond JSON: // and # comments to the end of the line, /* */ comments, trailing commas, Infinity and
// -Infinity, a byte order mark. Not accepted: NaN, Python literals, the unquoted strings of HJSON, more than 64 levels
// of nesting.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace deepscale::config {

using Json = nlohmann::ordered_json;

/// Throws ConfigError with line and column for text that is not JSON, and with their paths for keys that occur twice.
Json parse_json_text(std::string_view text);

/// Strict JSON except that infinite numbers are written as Infinity. indent < 0: on one line.
std::string json_to_text(const Json& value, int indent = -1);

/// Bytes of base64 or base64url text, padded or not; nothing when the text is not base64.
std::optional<std::string> decode_base64url(std::string_view text);

}  // namespace deepscale::config
