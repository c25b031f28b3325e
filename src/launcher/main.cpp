// The launcher's program: `deepspeed` and, under another name, `deepscale`.
// Exit code: the run's; 2 for a command line that cannot be used, 1 when the run cannot be started.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/error.h"
#include "launcher/agent_plan.h"
#include "launcher/launch_plan.h"
#include "launcher/message.h"
#include "launcher/multi_node.h"
#include "launcher/node_agent.h"
#include "launcher/options.h"
#include "launcher/rank_set.h"
#include "launcher/supervise.h"
#include "platform/files.h"
#include "platform/local_port.h"
#include "platform/machine.h"
#include "platform/random.h"
#include "platform/tcp.h"

namespace deepscale {
namespace {

namespace fs = std::filesystem;

/// The rendezvous port, claimed for the run. Nothing when rank 0 is elsewhere, where this machine cannot know.
std::optional<LocalPort> claim_port(const LauncherOptions& options, LaunchPlan& plan, const MachineFacts& facts) {
  const std::string& address = plan.master_addr;
  const std::vector<std::string> own = own_addresses();
  const bool here = is_loopback(address) || address == "localhost" || address == facts.host ||
                    std::find(own.begin(), own.end(), address) != own.end();
  if (!here || plan.node_rank != 0) {
    if (plan.master_port == 0) plan.master_port = kDefaultMasterPort;
    return std::nullopt;
  }
  auto claimed = LocalPort::claim(options.master_port.value_or(kDefaultMasterPort));
  DS_CHECK_AS(IoError, claimed || !options.master_port,
              "--master_port {} is busy on this machine; give another one, or none to get a free one",
              *options.master_port);
  if (!claimed) {
    DS_CHECK_AS(
        IoError, plan.nodes == 1,
        "port {} is busy on this machine, and the others cannot know of another one: give --master_port, the same on "
        "every machine",
        kDefaultMasterPort);
    claimed = LocalPort::claim_any();
    plan.notes.push_back(fmt::format("port {} is busy, using {}", kDefaultMasterPort, claimed->number()));
  }
  plan.master_port = claimed->number();
  return claimed;
}

/// The file of --save_pid, removed with the run.
class PidFile {
 public:
  explicit PidFile(ProcessId launcher) : path_(fs::temp_directory_path() / fmt::format("{}.deepspeed", launcher)) {
    // Written under a name that nobody can guess and renamed, because anybody may put a link into that directory.
    const fs::path hidden = path_.string() + "." + random_token();
    std::ofstream file(hidden);
    file << launcher << '\n';
    DS_CHECK_AS(IoError, file.flush().good(), "--save_pid: cannot write {}", hidden.string());
    file.close();
    rename_file(hidden.string(), path_.string());
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

/// How a job ended, and whether another attempt makes sense.
struct Attempt {
  int code = 0;
  bool failed = false;
  bool stopped = false;  ///< somebody asked for an end, also after the failure
  std::vector<int> lost_hosts;
  bool final = false;  ///< nothing had been started, and the next attempt would fail as this one
};

/// Runs the job on this machine, once.
Attempt run_here(const LauncherOptions& options, const LaunchPlan& plan, const MachineFacts& facts,
                 const RankSettings& settings) {
  const RankPlace first{plan.first_rank(plan.node_rank), plan.ranks, 0, plan.local_size(), plan.node_rank, plan.nodes};
  const std::vector<RankLaunch> ranks =
      make_rank_set(options, settings, first, plan.local_size(), prepare_logs(options, first.rank), facts);
  const RunOutcome outcome = supervise_ranks(ranks, supervisor_options(options.log_level));
  if (outcome.failure) report_failure(*outcome.failure, facts.host, options.log_level);
  return {outcome.code(), outcome.failure.has_value(), outcome.stop_signal != 0, {}, false};
}

/// The plan without hosts that cannot be reached; nothing when too few are left.
std::optional<LaunchPlan> without_lost_hosts(const LauncherOptions& options, LaunchPlan plan,
                                             const std::vector<int>& lost) {
  for (auto index = lost.rbegin(); index != lost.rend(); ++index) plan.hosts.erase(plan.hosts.begin() + *index);
  plan.nodes = static_cast<int>(plan.hosts.size());
  if (plan.nodes < options.min_nodes) return std::nullopt;
  plan.ranks = plan.first_rank(plan.nodes);
  return plan;
}

/// Runs the job, and again after failures as often as the options allow.
int run_job(const LauncherOptions& options, LaunchPlan plan, const MachineFacts& facts, const std::string& python) {
  constexpr int kLongestPause = 20;
  const Message message(options.log_level);
  for (int restart = 0;; ++restart) {
    Attempt attempt;
    if (plan.backend == Backend::kLocal) {
      attempt =
          run_here(options, plan, facts, {python, plan.master_addr, plan.master_port, plan.visible_devices, restart});
    } else {
      MultiNodeOutcome outcome = run_multi_node(options, plan, facts, python, restart, multi_node_options());
      std::sort(outcome.lost.begin(), outcome.lost.end());
      attempt = {outcome.code, outcome.failed, outcome.stop_signal != 0, outcome.lost,
                 !outcome.started && outcome.lost.empty()};
    }
    if (!attempt.failed || attempt.stopped || attempt.final || restart >= options.max_restarts) return attempt.code;
    if (options.elastic && !attempt.lost_hosts.empty()) {
      const size_t before = plan.hosts.size();
      std::optional<LaunchPlan> smaller = without_lost_hosts(options, plan, attempt.lost_hosts);
      if (!smaller) {
        message.error("{} of {} machines are left, and --min_elastic_nodes is {}", before - attempt.lost_hosts.size(),
                      before, options.min_nodes);
        return attempt.code;
      }
      plan = std::move(*smaller);
    }
    // What fails at once would otherwise fail many times a second.
    std::this_thread::sleep_for(std::min(restart, kLongestPause) * std::chrono::milliseconds(500));
    message.info("restart {} of {}: {} ranks on {} machines", restart + 1, options.max_restarts, plan.ranks,
                 plan.nodes);
  }
}

/// Runs `body` under a guard, so that nothing outlives it, and turns its errors into an exit code.
template <typename Body>
int guarded(const Message& message, const Body& body) {
  const ExitStatus status = run_guarded([&] {
    try {
      return body();
    } catch (const ConfigError& error) {
      message.error("error: {}", error.what());
      return 2;
    } catch (const std::exception& error) {
      message.error("error: {}", error.what());
      return 1;
    }
  });
  if (status.signal != 0)
    message.error("the launcher's supervising process was {}; its ranks are ended", status.describe());
  return status.shell_code();
}

int launch_agent(const LauncherOptions& options) {
  AgentTicket ticket = decode_ticket(options.agent_ticket);
  if (options.agent_index >= 0) ticket.index = options.agent_index;
  const std::string token = agent_token(options);
  return guarded(Message(options.log_level), [&] { return run_agent(std::move(ticket), token); });
}

int launch(const std::vector<std::string>& arguments) {
  const ParsedCommandLine parsed = parse_command_line(arguments);
  if (parsed.text) {
    fmt::print("{}", *parsed.text);
    return 0;
  }
  const LauncherOptions& options = parsed.options;
  if (!options.agent_ticket.empty()) return launch_agent(options);
  const Message message(options.log_level);
  const MachineFacts facts = gather_machine_facts(options);
  LaunchPlan plan = make_launch_plan(options, facts);
  const bool here = plan.backend == Backend::kLocal;
  check_script(options);
  supervisor_options(options.log_level);  // says now what is wrong with its variables
  multi_node_options();
  const std::optional<LocalPort> port = here ? claim_port(options, plan, facts) : std::nullopt;
  const std::string python = python_for_ranks(options);
  for (const std::string& warning : plan.warnings) message.warning("{}", warning);
  for (const std::string& note : plan.notes) message.info("{}", note);
  if (here)
    message.debug("world size {}, rendezvous {}:{}, CUDA_VISIBLE_DEVICES={}", plan.ranks, plan.master_addr,
                  plan.master_port, plan.visible_devices);
  std::optional<PidFile> pid_file;
  if (options.save_pid) pid_file.emplace(current_process());
  return guarded(message, [&] { return run_job(options, plan, facts, python); });
}

int report_error(const std::exception& error, int code) {
  fmt::print(stderr, "deepspeed: error: {}\n", error.what());
  return code;
}

}  // namespace
}  // namespace deepscale

int main(int count, char** values) {
  try {
    return deepscale::launch(deepscale::program_arguments(count, values));
  } catch (const deepscale::ConfigError& error) {
    return deepscale::report_error(error, 2);
  } catch (const deepscale::UnsupportedError& error) {
    return deepscale::report_error(error, 2);
  } catch (const std::exception& error) {
    return deepscale::report_error(error, 1);
  }
}
