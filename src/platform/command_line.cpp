// Rules: "Parsing C command-line arguments" and CommandLineToArgvW in Microsoft's documentation; `cmd /?` for cmd.exe.
#include "platform/command_line.h"

#include <algorithm>
#include <cctype>

#include "base/error.h"

namespace deepscale {
namespace {

constexpr std::string_view kSpaces = " \t\n\v";

void check_no_zero(const std::vector<std::string>& arguments) {
  for (const std::string& argument : arguments) {
    DS_CHECK_AS(IoError, argument.find('\0') == std::string::npos,
                "cannot start \"{}\": an argument holds a zero byte, which a command line cannot carry", arguments[0]);
  }
}

std::string quoted_program(const std::vector<std::string>& arguments) {
  DS_CHECK_AS(IoError, !arguments.empty(), "cannot start a process without a program name");
  DS_CHECK_AS(IoError, arguments[0].find('"') == std::string::npos, "cannot start {}: a program's name holds no quotes",
              arguments[0]);
  check_no_zero(arguments);
  // In quotes even without spaces: then nothing before the end of the name can be taken for the program.
  return '"' + arguments[0] + '"';
}

/// An argument inside cmd.exe's line. A percent sign is followed by the expansion of an empty substring of %cd%, so
/// that no variable's name can form; quotes are doubled, which both cmd.exe and the C runtime read as one.
std::string quote_for_batch(std::string_view argument) {
  std::string quoted = "\"";
  size_t backslashes = 0;
  for (const char letter : argument) {
    if (letter == '%') {
      quoted += "%%cd:~,%";
    } else {
      if (letter == '"') quoted += std::string(backslashes, '\\') + '"';
      quoted += letter;
    }
    backslashes = letter == '\\' ? backslashes + 1 : 0;
  }
  return quoted + std::string(backslashes, '\\') + '"';
}

}  // namespace

std::string quote_argument(std::string_view argument) {
  if (!argument.empty() && argument.find_first_of(" \t\n\v\"") == std::string_view::npos) return std::string(argument);
  std::string quoted = "\"";
  size_t backslashes = 0;
  for (const char letter : argument) {
    if (letter == '\\') {
      ++backslashes;
      continue;
    }
    // Before a quote each backslash counts for half a one, elsewhere for itself.
    quoted.append(letter == '"' ? 2 * backslashes + 1 : backslashes, '\\');
    backslashes = 0;
    quoted += letter;
  }
  quoted.append(2 * backslashes, '\\');
  return quoted + '"';
}

std::string command_line(const std::vector<std::string>& arguments) {
  std::string line = quoted_program(arguments);
  for (size_t i = 1; i < arguments.size(); ++i) line += ' ' + quote_argument(arguments[i]);
  return line;
}

bool is_batch_file(std::string_view path) {
  // Windows ignores spaces and dots at a name's end.
  const size_t last = path.find_last_not_of(" .");
  path = path.substr(0, last == std::string_view::npos ? 0 : last + 1);
  if (path.size() < 4) return false;
  std::string ending(path.substr(path.size() - 4));
  std::transform(ending.begin(), ending.end(), ending.begin(), [](unsigned char c) { return std::tolower(c); });
  return ending == ".bat" || ending == ".cmd";
}

std::string batch_command_line(const std::string& cmd_path, const std::vector<std::string>& arguments) {
  for (const std::string& argument : arguments) {
    DS_CHECK_AS(IoError, argument.find_first_of("\r\n") == std::string::npos,
                "cannot start {}: an argument of a batch file cannot hold a line end", arguments[0]);
  }
  // Extensions on, for the substring; delayed expansion off, so that '!' is a letter; no AutoRun commands. cmd.exe
  // takes off the outermost quotes and keeps what is between them.
  std::string line = '"' + cmd_path + "\" /e:ON /v:OFF /d /s /c \"" + quoted_program(arguments);
  DS_CHECK_AS(IoError, arguments[0].find('%') == std::string::npos, "cannot start {}: rename it without '%'",
              arguments[0]);
  for (size_t i = 1; i < arguments.size(); ++i) line += ' ' + quote_for_batch(arguments[i]);
  return line + '"';
}

std::vector<std::string> split_command_line(std::string_view line) {
  std::vector<std::string> arguments;
  size_t next = 0;
  // The program: up to the second quote or the first space, without escapes.
  if (!line.empty() && line[0] == '"') {
    const size_t end = std::min(line.find('"', 1), line.size());
    arguments.emplace_back(line.substr(1, end - 1));
    next = std::min(end + 1, line.size());
  } else {
    next = std::min(line.find_first_of(kSpaces), line.size());
    arguments.emplace_back(line.substr(0, next));
  }
  for (;;) {
    next = line.find_first_not_of(kSpaces, next);
    if (next == std::string_view::npos) return arguments;
    std::string argument;
    bool quoted = false;
    for (; next < line.size() && (quoted || kSpaces.find(line[next]) == std::string_view::npos); ++next) {
      size_t backslashes = 0;
      while (next < line.size() && line[next] == '\\') {
        ++backslashes;
        ++next;
      }
      const bool quote = next < line.size() && line[next] == '"';
      argument.append(quote ? backslashes / 2 : backslashes, '\\');
      if (quote && backslashes % 2 == 1) {
        argument += '"';
      } else if (quote && quoted && next + 1 < line.size() && line[next + 1] == '"') {
        argument += '"';  // two quotes inside quotes are one
        ++next;
      } else if (quote) {
        quoted = !quoted;
      } else if (backslashes > 0) {
        --next;  // the letter after them is looked at next
      } else {
        argument += line[next];
      }
    }
    arguments.push_back(std::move(argument));
  }
}

}  // namespace deepscale
