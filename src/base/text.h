// Text helpers that several folders share. Pure.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace deepscale {

/// The text without blanks (or the characters given) at its ends. Refers to the same memory.
inline std::string_view trimmed(std::string_view text, std::string_view blanks = " \t\r\n") {
  const size_t begin = text.find_first_not_of(blanks);
  return begin == std::string_view::npos ? std::string_view()
                                         : text.substr(begin, text.find_last_not_of(blanks) - begin + 1);
}

/// Text of unknown origin for a message: at most `longest` bytes of it, control characters and bytes that are no UTF-8
/// as
/// \\xNN, "..." where it is cut.
std::string printable(std::string_view text, size_t longest = 100);

}  // namespace deepscale
