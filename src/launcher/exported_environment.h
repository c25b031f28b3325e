// Which environment variables a run takes along to other machines. Pure but for the function that reads the files.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace deepscale {

using Variables = std::map<std::string, std::string>;

/// Variables that go along by themselves: those that configure Python, the communication libraries and this library.
/// PYTHONPATH is preceded by `working_directory`, so that modules beside the script are found.
Variables exported_variables(const Variables& environment, const std::string& working_directory);

/// "KEY=VALUE" lines; blank lines and lines that begin with '#' are ignored, one pair of quotes around the value is
/// taken off. Throws ConfigError with file and line for anything else.
Variables parse_environment_file(std::string_view text, const std::string& path);

/// The files named by DS_ENV_FILE (default .deepspeed_env), in the home directory and in the current one; the latter
/// wins. Throws ConfigError as above.
Variables read_environment_files(const Variables& environment);

}  // namespace deepscale
