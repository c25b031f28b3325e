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
  const std::string beside = executable_path().parent_path().string();
  for (const std::string& candidate :
       {beside + "/python3", beside + "/python", std::string("python3"), std::string("python")}) {
    if (const auto found = find_program(candidate)) return found->string();
  }
  return std::nullopt;
}

}  // namespace deepscale
