// The launcher's program: `deepspeed` and, under another name, `deepscale`.
// Exit code: the run's; 2 for a command line that cannot be used, 1 when the run cannot be started.
#include <ctime>
#include <filesystem>
#include <fstream>

#include "base/environment.h"
#include "base/error.h"
#include "launcher/launch_plan.h"
#include "launcher/message.h"
#include "launcher/options.h"
#include "launcher/python.h"
#include "launcher/supervise.h"
#include "platform/local_port.h"
#include "platform/machine.h"

namespace deepscale {
namespace {

namespace fs = std::filesystem;

constexpr int kDefaultPort = 29500;

void check_script(const LauncherOptions& options) {
  if (options.module || options.no_python) return;
  DS_CHECK_AS(ConfigError, fs::exists(options.script), "there is no script \"{}\"", options.script);
  DS_CHECK_AS(ConfigError, is_readable(options.script), "the script \"{}\" cannot be read: no permission",
              options.script);
}

/// "<directory>/<YYYYmmddHHMMSS>_rank", to which the rank and ".log" are added. Makes the directory.
std::string log_prefix(const std::string& directory) {
  std::error_code error;
  fs::create_directories(directory, error);
  DS_CHECK_AS(IoError, !error, "cannot make the log directory {}: {}", directory, error.message());
  char stamp[32] = {};
  const std::time_t now = std::time(nullptr);
  std::strftime(stamp, sizeof(stamp), "%Y%m%d%H%M%S", std::localtime(&now));
  const std::string prefix = fmt::format("{}/{}_rank", directory, stamp);
  const std::string first = prefix + "0.log";
  DS_CHECK_AS(IoError, std::ofstream(first, std::ios::app).good(), "cannot write the log file {}: no permission?",
              first);
  return prefix;
}

/// The rendezvous port, claimed for the run. Nothing when rank 0 is elsewhere, where this machine cannot know.
std::optional<LocalPort> claim_port(const LauncherOptions& options, LaunchPlan& plan) {
  const bool here = plan.master_addr == "127.0.0.1" || plan.master_addr == "localhost" || plan.master_addr == "::1";
  if (!here) {
    if (plan.master_port == 0) plan.master_port = kDefaultPort;
    return std::nullopt;
  }
  auto claimed = LocalPort::claim(options.master_port.value_or(kDefaultPort));
  DS_CHECK_AS(IoError, claimed || !options.master_port,
              "--master_port {} is busy on this machine; give another one, or none to get a free one",
              *options.master_port);
  if (!claimed) {
    claimed = LocalPort::claim_any();
    plan.notes.push_back(fmt::format("port {} is busy, using {}", kDefaultPort, claimed->number()));
  }
  plan.master_port = claimed->number();
  return claimed;
}

/// The file of --save_pid, removed with the run.
class PidFile {
 public:
  explicit PidFile(ProcessId launcher) : path_(fmt::format("/tmp/{}.deepspeed", launcher)) {
    std::ofstream file(path_);
    file << launcher << '\n';
    DS_CHECK_AS(IoError, file.good(), "--save_pid: cannot write {}", path_.string());
  }
  ~PidFile() {
    std::error_code ignored;
    fs::remove(path_, ignored);
  }
  PidFile(const PidFile&) = delete;
  PidFile& operator=(const PidFile&) = delete;

 private:
  fs::path path_;
};

std::vector<RankLaunch> rank_launches(const LauncherOptions& options, const LaunchPlan& plan,
                                      const MachineFacts& facts) {
  std::string python;
  if (!options.no_python) {
    const auto found = find_python();
    DS_CHECK_AS(IoError, found.has_value(),
                "no Python interpreter beside this program or in PATH; set DEEPSCALE_PYTHON");
    python = *found;
  }
  const std::string logs = options.log_dir.empty() ? "" : log_prefix(options.log_dir);
  std::vector<RankLaunch> ranks;
  for (int local_rank = 0; local_rank < plan.local_size(); ++local_rank) {
    RankLaunch launch{plan.first_rank() + local_rank, local_rank,
                      rank_process(options, plan, facts, local_rank, python)};
    if (!logs.empty()) launch.process.output_file = fmt::format("{}{}.log", logs, launch.rank);
    // A single rank keeps the launcher's own standard error, so that it is in every way a program run by hand.
    launch.process.keep_error_tail = plan.local_size() > 1;
    ranks.push_back(std::move(launch));
  }
  return ranks;
}

SupervisorOptions supervisor_options(const LauncherOptions& options, const MachineFacts& facts) {
  SupervisorOptions supervisor;
  supervisor.host = facts.host;
  supervisor.log_level = options.log_level;
  if (const auto grace_ms = environment_int("DEEPSCALE_KILL_GRACE_MS")) {
    DS_CHECK_AS(ConfigError, *grace_ms >= 0,
                "environment variable DEEPSCALE_KILL_GRACE_MS must be at least 0, found {}", *grace_ms);
    supervisor.grace = std::chrono::milliseconds(*grace_ms);
  }
  return supervisor;
}

int launch(const std::vector<std::string>& arguments) {
  const ParsedCommandLine parsed = parse_command_line(arguments);
  if (parsed.text) {
    fmt::print("{}", *parsed.text);
    return 0;
  }
  const LauncherOptions& options = parsed.options;
  const Message message(options.log_level);
  const MachineFacts facts = gather_machine_facts(options);
  LaunchPlan plan = make_launch_plan(options, facts);
  check_script(options);
  const SupervisorOptions supervisor = supervisor_options(options, facts);
  const std::optional<LocalPort> port = claim_port(options, plan);
  const std::vector<RankLaunch> ranks = rank_launches(options, plan, facts);
  for (const std::string& note : plan.notes) message.info("{}", note);
  message.debug("world size {}, rendezvous {}:{}, CUDA_VISIBLE_DEVICES={}", plan.world_size(), plan.master_addr,
                plan.master_port, plan.visible_devices);

  std::optional<PidFile> pid_file;
  if (options.save_pid) pid_file.emplace(current_process());
  const ExitStatus status = run_guarded([&] {
    try {
      return supervise_ranks(ranks, supervisor);
    } catch (const std::exception& error) {
      message.error("{}", error.what());
      return 1;
    }
  });
  if (status.signal != 0)
    message.error("the launcher's supervising process was {}; its ranks are ended", status.describe());
  return status.shell_code();
}

int report_error(const std::exception& error, int code) {
  fmt::print(stderr, "deepspeed: error: {}\n", error.what());
  return code;
}

}  // namespace
}  // namespace deepscale

int main(int count, char** values) {
  try {
    return deepscale::launch({values + 1, values + count});
  } catch (const deepscale::ConfigError& error) {
    return deepscale::report_error(error, 2);
  } catch (const deepscale::UnsupportedError& error) {
    return deepscale::report_error(error, 2);
  } catch (const std::exception& error) {
    return deepscale::report_error(error, 1);
  }
}
