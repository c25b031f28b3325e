// Windows hands a new process one string, which the process itself splits into arguments. These functions make that
// string, so that the program gets exactly the arguments meant. Pure; all text is UTF-8. On every system, so that the
// rules are tested everywhere.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace deepscale {

/// One argument as CommandLineToArgvW and the C runtime read it back: in quotes where needed; backslashes doubled only
/// where a quote follows.
std::string quote_argument(std::string_view argument);

/// The command line of a program: quoted arguments with spaces between. arguments[0] is the program's path and may hold
/// no quote (no Windows path does). Throws IoError for that and for an argument with a zero byte.
std::string command_line(const std::vector<std::string>& arguments);

/// Whether Windows runs this file through cmd.exe: names ending in .bat or .cmd.
bool is_batch_file(std::string_view path);

/// The command line with which cmd.exe runs the batch file arguments[0] and gives it the other arguments as they are:
/// nothing in them is taken for a command, a redirection or a variable. Throws IoError for what no quoting can carry
/// there: zero bytes and line ends.
std::string batch_command_line(const std::string& cmd_path, const std::vector<std::string>& arguments);

/// What CommandLineToArgvW makes of a command line; the first argument follows its rule for program names.
std::vector<std::string> split_command_line(std::string_view line);

}  // namespace deepscale
