#include "launcher/remote_command.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

namespace deepscale {
namespace {

// A host that does not answer must not hold up the others for minutes.
constexpr const char* kConnectTimeout = "ConnectTimeout=10";

std::string remote_line(const RemoteCommand& command) {
  return fmt::format("{}", fmt::join(command.words, " "));
}

}  // namespace

std::vector<std::string> pdsh_words(const RemoteCommand& command, const std::vector<std::string>& hosts) {
  return {
      "pdsh", "-R", "ssh", "-S", "-f", "1024", "-w", fmt::format("{}", fmt::join(hosts, ",")), remote_line(command)};
}

std::string pdsh_ssh_arguments(const RemoteCommand& command) {
  return fmt::format("-o BatchMode=yes -o {}{}", kConnectTimeout,
                     command.ssh_port > 0 ? fmt::format(" -p {}", command.ssh_port) : "");
}

std::vector<std::string> ssh_words(const RemoteCommand& command, const std::string& host) {
  std::vector<std::string> words = {"ssh", "-n", "-o", "BatchMode=yes", "-o", kConnectTimeout};
  if (command.ssh_port > 0) words.insert(words.end(), {"-p", std::to_string(command.ssh_port)});
  words.insert(words.end(), {host, remote_line(command)});
  return words;
}

std::vector<std::string> hosts_that_pdsh_blames(const std::vector<std::string>& error_lines) {
  std::vector<std::string> hosts;
  for (const std::string& line : error_lines) {
    if (!line.starts_with("pdsh@")) continue;
    const size_t begin = line.find(": ");
    const size_t end = begin == std::string::npos ? begin : line.find(": ", begin + 2);
    if (end == std::string::npos || line.find("exited with exit code", end) == std::string::npos) continue;
    const std::string host = line.substr(begin + 2, end - begin - 2);
    if (std::find(hosts.begin(), hosts.end(), host) == hosts.end()) hosts.push_back(host);
  }
  return hosts;
}

std::string LinePrefixer::add(std::string_view piece) {
  std::string lines;
  for (size_t end = piece.find('\n'); end != std::string_view::npos; end = piece.find('\n')) {
    lines += prefix_ + begun_ + std::string(piece.substr(0, end + 1));
    begun_.clear();
    piece.remove_prefix(end + 1);
  }
  begun_ += piece;
  return lines;
}

std::string LinePrefixer::finish() {
  if (begun_.empty()) return "";
  std::string line = prefix_ + begun_ + "\n";
  begun_.clear();
  return line;
}

}  // namespace deepscale
