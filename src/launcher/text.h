// Words and quotes: what the launcher's small grammars and command lines share. Pure.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace deepscale {

/// Parts between separators; at least one, parts may be empty.
std::vector<std::string> split(std::string_view text, char separator);

/// Words between blanks and line ends.
std::vector<std::string> split_words(std::string_view text);

/// Words as a POSIX shell would make them of single quotes, double quotes and backslashes; nothing is expanded.
/// Throws ConfigError naming `option` for a quote that does not end.
std::vector<std::string> split_shell_words(std::string_view text, const std::string& option);

/// The word as one word for a POSIX shell; unchanged when nothing in it is special.
std::string shell_quoted(const std::string& word);

/// URL-safe base64 (RFC 4648, section 5), without padding.
std::string base64url(std::string_view bytes);
/// Throws ConfigError for other characters or an impossible length. Padding is accepted.
std::string from_base64url(std::string_view text);

}  // namespace deepscale
