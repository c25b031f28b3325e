#include "base/text.h"

#include <fmt/core.h>

namespace deepscale {
namespace {

/// Bytes of the UTF-8 sequence at the front; 0 when there is none.
size_t sequence_length(std::string_view text) {
  const auto first = static_cast<unsigned char>(text.front());
  if (first < 0x80) return 1;
  const size_t length = first >= 0xC2 && first < 0xE0   ? 2
                        : (first >> 4) == 0xE           ? 3
                        : first >= 0xF0 && first < 0xF5 ? 4
                                                        : 0;
  if (length == 0 || length > text.size()) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((static_cast<unsigned char>(text[i]) & 0xC0) != 0x80) return 0;
  }
  const auto second = static_cast<unsigned char>(text[1]);
  const bool surrogate = first == 0xED && second >= 0xA0,
             overlong = (first == 0xE0 && second < 0xA0) || (first == 0xF0 && second < 0x90);
  const bool beyond = first == 0xF4 && second >= 0x90;
  return surrogate || overlong || beyond ? 0 : length;
}

}  // namespace

std::string printable(std::string_view text, size_t longest) {
  std::string shown;
  size_t taken = 0;
  while (taken < text.size()) {
    const std::string_view rest = text.substr(taken);
    const size_t length = sequence_length(rest);
    if (taken + (length == 0 ? 1 : length) > longest) return shown + "...";
    const auto first = static_cast<unsigned char>(rest.front());
    if (length == 0 || first < 0x20 || first == 0x7F) {
      shown += fmt::format("\\x{:02x}", first);
      ++taken;
    } else {
      shown += rest.substr(0, length);
      taken += length;
    }
  }
  return shown;
}

}  // namespace deepscale
