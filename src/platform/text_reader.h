// Small system files as text, behind a function so that tests can put recorded machines in their place.
#pragma once

#include <functional>
#include <optional>
#include <string>

namespace deepscale {

/// Path to contents; nothing when the file cannot be read.
using TextReader = std::function<std::optional<std::string>(const std::string& path)>;

/// The reader of this machine.
std::optional<std::string> read_text_file(const std::string& path);

}  // namespace deepscale
