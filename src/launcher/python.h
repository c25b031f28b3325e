// Which Python interpreter the ranks and the report use.
#pragma once

#include <optional>
#include <string>

namespace deepscale {

/// DEEPSCALE_PYTHON, else the interpreter in the directory of this executable (a virtual environment's), else python3
/// or python in PATH. Nothing when there is none. Throws ConfigError when DEEPSCALE_PYTHON names no executable.
std::optional<std::string> find_python();

}  // namespace deepscale
