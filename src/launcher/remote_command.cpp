#include "launcher/remote_command.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

namespace deepscale {
namespace {

std::string remote_line(const RemoteCommand& command) {
  return fmt::format("{}", fmt::join(command.words, " "));
}

}  // namespace

std::vector<std::string> ssh_options(std::optional<int> port) {
  std::vector<std::string> words = {"-o", "BatchMode=yes", "-o", "ConnectTimeout=15"};
  if (port) words.insert(words.end(), {"-p", std::to_string(*port)});
  return words;
}

std::vector<std::string> pdsh_start(const std::vector<std::string>& hosts) {
  return {"pdsh", "-R", "ssh", "-S", "-f", "1024", "-w", fmt::format("{}", fmt::join(hosts, ","))};
}

std::vector<std::string> pdsh_words(const RemoteCommand& command, const std::vector<std::string>& hosts) {
  std::vector<std::string> words = pdsh_start(hosts);
  words.push_back(remote_line(command));
  return words;
}

std::string pdsh_ssh_arguments(const RemoteCommand& command) {
  return fmt::format("{}", fmt::join(ssh_options(command.ssh_port), " "));
}

std::vector<std::string> ssh_words(const RemoteCommand& command, const std::string& host) {
  std::vector<std::string> words = {"ssh", "-n"};
  const std::vector<std::string> options = ssh_options(command.ssh_port);
  words.insert(words.end(), options.begin(), options.end());
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

std::string blamed_by_pdsh(const std::vector<std::string>& error_lines, const std::string& host) {
  const std::vector<std::string> blamed = hosts_that_pdsh_blames(error_lines);
  if (std::find(blamed.begin(), blamed.end(), host) == blamed.end()) return "";
  const std::string own = host + ": ";
  const auto last = std::find_if(error_lines.rbegin(), error_lines.rend(),
                                 [&](const std::string& line) { return line.starts_with(own); });
  const std::string said = last == error_lines.rend() ? "" : ": " + last->substr(own.size());
  return "ssh failed" + said;
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
