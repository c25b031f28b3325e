// Commands on other hosts: how ssh and pdsh are called, by the launcher and by ds_ssh, and what ds_ssh prints. Pure.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace deepscale {

/// Options of every ssh: it must not ask for a password that nobody can type, nor wait for minutes for a host that is
/// down. Nothing for the port: what ssh's configuration says.
std::vector<std::string> ssh_options(std::optional<int> port);

/// The beginning of every pdsh over these hosts; what the remote shell is to run follows.
std::vector<std::string> pdsh_start(const std::vector<std::string>& hosts);

/// What the remote shell is to run: words joined by blanks, as ssh itself does.
struct RemoteCommand {
  std::vector<std::string> words;
  std::optional<int> ssh_port;
};

/// pdsh over all hosts; prefixes output by itself. Its exit code is the largest of the remote ones.
std::vector<std::string> pdsh_words(const RemoteCommand& command, const std::vector<std::string>& hosts);
/// What PDSH_SSH_ARGS_APPEND has to hold for it.
std::string pdsh_ssh_arguments(const RemoteCommand& command);

/// ssh to one host. Asks for no password and does not read standard input.
std::vector<std::string> ssh_words(const RemoteCommand& command, const std::string& host);

/// The hosts of lines like "pdsh@here: there: ssh exited with exit code 3", once each, in their order.
std::vector<std::string> hosts_that_pdsh_blames(const std::vector<std::string>& error_lines);

/// Why pdsh gave this host up while others go on: the host's own last line and what pdsh says. Empty when it has not.
std::string blamed_by_pdsh(const std::vector<std::string>& error_lines, const std::string& host);

/// Puts "host: " before each line of text that comes in pieces.
class LinePrefixer {
 public:
  explicit LinePrefixer(std::string host) : prefix_(std::move(host) + ": ") {}

  /// The lines that `piece` completes, prefixed.
  std::string add(std::string_view piece);
  /// The last line when it has no end.
  std::string finish();

 private:
  std::string prefix_;
  std::string begun_;
};

}  // namespace deepscale
