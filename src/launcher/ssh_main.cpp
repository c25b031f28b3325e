// ds_ssh: runs a command on all hosts of a hostfile, through pdsh where it is installed, otherwise through one ssh per
// host at the same time. Every line of output begins with "host: ".
// Exit code: 0 when all succeed; otherwise the largest of the hosts' codes, and the hosts are named. 1 for an unusable
// hostfile, 2 for an unusable command line.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>

#include "base/error.h"
#include "launcher/hostfile.h"
#include "launcher/remote_command.h"
#include "platform/machine.h"
#include "platform/process.h"
#include "platform/resources.h"

namespace deepscale {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;

struct Request {
  std::string hostfile = kDefaultHostfile;
  bool plain_ssh = false;
  RemoteCommand command;
};

std::vector<std::string> environment_lines(const std::map<std::string, std::string>& more) {
  std::map<std::string, std::string> variables = environment_variables();
  for (const auto& [name, value] : more) variables[name] = value;
  std::vector<std::string> lines;
  for (const auto& [name, value] : variables) lines.push_back(fmt::format("{}={}", name, value));
  return lines;
}

int report_failures(const std::vector<std::string>& failed, int code) {
  if (code == 0) return 0;
  fmt::print(stderr, "ds_ssh: error: the command failed on {}\n",
             failed.empty() ? std::string("at least one host") : fmt::format("{}", fmt::join(failed, ", ")));
  return code;
}

int run_with_pdsh(const Request& request, const std::vector<std::string>& hosts) {
  ProcessSpec spec;
  spec.arguments = pdsh_words(request.command, hosts);
  const std::string given = environment_variables()["PDSH_SSH_ARGS_APPEND"];
  spec.environment = environment_lines({{"PDSH_SSH_ARGS_APPEND", given + " " + pdsh_ssh_arguments(request.command)}});
  spec.keep_error_tail = true;
  ProcessTree tree;
  const ProcessId process = tree.start(spec);
  for (;;) {
    const ProcessEvent event = tree.wait(std::nullopt);
    if (event.kind == ProcessEvent::Kind::kStopRequested) return 128 + event.signal;
    if (event.kind != ProcessEvent::Kind::kExited || event.process != process) continue;
    tree.flush_captured(milliseconds(500));
    return report_failures(hosts_that_pdsh_blames(tree.error_tail(process)), event.status.shell_code());
  }
}

/// A file that ssh writes and this program prints while it grows: portable, and no ssh waits for a slow terminal.
class Output {
 public:
  Output(const std::string& host, fs::path path) : lines_(host), path_(std::move(path)) {}

  void print_new() {
    if (!file_.is_open()) file_.open(path_, std::ios::binary);
    if (!file_.is_open()) return;
    file_.clear();
    char piece[1 << 14];
    while (file_.read(piece, sizeof piece), file_.gcount() > 0) {
      fmt::print("{}", lines_.add({piece, static_cast<size_t>(file_.gcount())}));
    }
    std::fflush(stdout);
  }
  void finish() {
    print_new();
    fmt::print("{}", lines_.finish());
    std::fflush(stdout);
    file_.close();
  }

 private:
  LinePrefixer lines_;
  fs::path path_;
  std::ifstream file_;
};

int run_with_ssh(const Request& request, const std::vector<std::string>& hosts, const fs::path& folder) {
  struct Running {
    std::string host;
    Output output;
  };
  std::map<ProcessId, Running> running;
  ProcessTree tree;
  for (size_t i = 0; i < hosts.size(); ++i) {
    const fs::path path = folder / std::to_string(i);
    ProcessSpec spec;
    spec.arguments = ssh_words(request.command, hosts[i]);
    spec.environment = environment_lines({});
    spec.output_file = path.string();
    running.emplace(tree.start(spec), Running{hosts[i], Output(hosts[i], path)});
  }
  std::vector<std::string> failed;
  int code = 0;
  while (!running.empty()) {
    const ProcessEvent event = tree.wait(milliseconds(50));
    if (event.kind == ProcessEvent::Kind::kStopRequested) return 128 + event.signal;
    for (auto& [process, one] : running) one.output.print_new();
    const auto ended = event.kind == ProcessEvent::Kind::kExited ? running.find(event.process) : running.end();
    if (ended == running.end()) continue;
    ended->second.output.finish();
    if (!event.status.ok()) failed.push_back(fmt::format("{} ({})", ended->second.host, event.status.describe()));
    code = std::max(code, event.status.shell_code());
    running.erase(ended);
  }
  return report_failures(failed, code);
}

int run(const Request& request) {
  std::vector<std::string> hosts;
  for (const HostSlots& host : read_hostfile(request.hostfile)) hosts.push_back(host.host);
  if (!request.plain_ssh && find_program("pdsh")) return run_with_pdsh(request, hosts);
  DS_CHECK_AS(IoError, find_program("ssh").has_value(), "neither pdsh nor ssh is in PATH; install one of them");
  const fs::path folder = fs::temp_directory_path() / fmt::format("ds_ssh-{}", this_process_id());
  DS_CHECK_AS(IoError, make_private_folder(folder), "cannot make the folder {} for the hosts' output", folder.string());
  const int code = run_with_ssh(request, hosts, folder);
  std::error_code ignored;
  fs::remove_all(folder, ignored);
  return code;
}

}  // namespace
}  // namespace deepscale

int main(int count, char** values) {
  using namespace deepscale;
  CLI::App app("Runs a command on all hosts of a hostfile. Usage: ds_ssh [-f HOSTFILE] command...", "ds_ssh");
  Request request;
  app.add_option("-f,--hostfile", request.hostfile, "lines \"host slots=N\"")->capture_default_str();
  app.add_option("--ssh_port", request.command.ssh_port, "port of the hosts' ssh servers")->check(CLI::Range(1, 65535));
  app.add_flag("--no_pdsh", request.plain_ssh, "use ssh even where pdsh is installed");
  app.prefix_command();  // the command's own options are not ours
  try {
    std::vector<std::string> words = program_arguments(count, values);
    std::reverse(words.begin(), words.end());  // as CLI11 wants them
    app.parse(std::move(words));
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  request.command.words = app.remaining();
  if (!request.command.words.empty() && request.command.words.front() == "--") {
    request.command.words.erase(request.command.words.begin());
  }
  if (request.command.words.empty()) {
    fmt::print(stderr, "ds_ssh: error: no command is given; usage: ds_ssh [-f HOSTFILE] command...\n");
    return 2;
  }
  try {
    return run(request);
  } catch (const std::exception& error) {
    fmt::print(stderr, "ds_ssh: error: {}\n", error.what());
    return 1;
  }
}
