// One command on every host of a hostfile: what ds_ssh starts, and what it prints. Pure.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace deepscale {

/// What the remote shell is to run: words joined by blanks, as ssh itself does.
struct RemoteCommand {
  std::vector<std::string> words;
  int ssh_port = 0;  ///< 0: what ssh's configuration says
};

/// pdsh over all hosts; prefixes output by itself. Its exit code is the largest of the remote ones.
std::vector<std::string> pdsh_words(const RemoteCommand& command, const std::vector<std::string>& hosts);
/// What PDSH_SSH_ARGS_APPEND has to hold for it.
std::string pdsh_ssh_arguments(const RemoteCommand& command);

/// ssh to one host. Asks for no password and does not read standard input.
std::vector<std::string> ssh_words(const RemoteCommand& command, const std::string& host);

/// The hosts of lines like "pdsh@here: there: ssh exited with exit code 3", once each, in their order.
std::vector<std::string> hosts_that_pdsh_blames(const std::vector<std::string>& error_lines);

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
