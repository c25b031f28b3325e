// The text of a configuration file. Names are UTF-8 on every system.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace deepscale::config {

/// Empty for a text that cannot be a file's name here.
std::filesystem::path utf8_path(const std::string& text);

/// Throws ConfigError: no such file, not a file, unreadable, or too large to be a configuration (16 MiB). `kind`: what
/// messages call it.
std::string read_config_file(const std::string& name, std::string_view kind = "configuration file");

}  // namespace deepscale::config
