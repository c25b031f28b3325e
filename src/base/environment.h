// Reading environment variables, in one place (docs/env.md lists the names that DeepScale reads).
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace deepscale {

/// The variable's value, or nothing when it is unset or empty.
std::optional<std::string> environment(const char* name);

/// The variable as an integer. Throws ConfigError when it is set and is not one.
std::optional<int64_t> environment_int(const char* name);

}  // namespace deepscale
