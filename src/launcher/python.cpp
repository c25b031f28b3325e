#include "launcher/python.h"

#include "base/environment.h"
#include "base/error.h"
#include "platform/machine.h"

namespace deepscale {

std::optional<std::string> find_python() {
  if (const auto chosen = environment("DEEPSCALE_PYTHON")) {
    DS_CHECK_AS(ConfigError, find_program(*chosen).has_value(),
                "environment variable DEEPSCALE_PYTHON: \"{}\" is not an executable file", *chosen);
    return chosen;
  }
  for (const std::string& candidate : python_candidates(executable_path().parent_path().string())) {
    if (const auto found = find_program(candidate)) return found->string();
  }
  return std::nullopt;
}

}  // namespace deepscale
