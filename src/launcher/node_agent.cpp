#include "launcher/node_agent.h"

#include <fmt/ranges.h>

#include <charconv>
#include <filesystem>
#include <initializer_list>
#include <iostream>

#include "base/environment.h"
#include "base/error.h"
#include "launcher/control.h"
#include "launcher/message.h"
#include "launcher/rank_set.h"
#include "platform/local_port.h"
#include "platform/machine.h"

namespace deepscale {
namespace {

constexpr std::chrono::minutes kPlanTimeout{5};
/// How long an agent waits for the rest of the run. The launcher gives up earlier and says so, but for jobs that wait
/// in a queue.
constexpr std::chrono::hours kGoTimeout{24};

/// First of the variables that is a number.
std::optional<int> number_of(const MachineFacts& facts, std::initializer_list<const char*> names) {
  for (const char* name : names) {
    const auto found = facts.environment.find(name);
    if (found == facts.environment.end()) continue;
    int value = -1;
    const std::string& text = found->second;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error == std::errc() && end == text.data() + text.size() && value >= 0) return value;
  }
  return std::nullopt;
}

/// The rank that mpirun or srun gave this process.
int rank_from_environment(const MachineFacts& facts) {
  const auto rank = number_of(
      facts, {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK", "SLURM_PROCID", "RANK"});
  DS_CHECK_AS(ConfigError, rank.has_value(),
              "this agent finds no rank in its environment (OMPI_COMM_WORLD_RANK, PMIX_RANK, PMI_RANK, "
              "MV2_COMM_WORLD_RANK, SLURM_PROCID): was it started by mpirun or srun?");
  return *rank;
}

class Agent {
 public:
  Agent(AgentTicket ticket, std::string token) : ticket_(std::move(ticket)), token_(std::move(token)) {}

  int run();

 private:
  void prepare();
  void claim_port();
  int run_ranks(ControlClient& control, const AgentGo& go);

  AgentTicket ticket_;
  std::string token_;
  AgentPlan plan_;
  MachineFacts facts_;
  std::string logs_;
  int ranks_ = 1;                  // of this machine
  std::optional<LocalPort> port_;  // held for the run when this machine is the rendezvous
};

/// Only the rendezvous needs a port, and it is on the first machine.
void Agent::claim_port() {
  if (ticket_.index != 0) return;
  port_ = LocalPort::claim(plan_.options.master_port.value_or(kDefaultMasterPort));
  DS_CHECK_AS(IoError, port_ || !plan_.options.master_port,
              "--master_port {} is busy on host {}; give another one, or none to get a free one",
              *plan_.options.master_port, facts_.host);
  if (!port_) port_ = LocalPort::claim_any();
}

/// Everything that can go wrong on this machine, before any rank of the run is started.
void Agent::prepare() {
  const LauncherOptions& options = plan_.options;
  facts_ = gather_own_facts(options);
  facts_.environment.erase(kTokenVariable);
  for (const auto& [name, value] : plan_.variables) facts_.environment[name] = value;
  std::error_code error;
  std::filesystem::current_path(plan_.working_directory, error);
  DS_CHECK_AS(IoError, !error, "the directory {} of the launcher cannot be entered on host {}: {}",
              plan_.working_directory, facts_.host, error.message());
  check_script(options);
  DS_CHECK_AS(IoError, options.no_python || !options.venv_script.empty() || find_program(plan_.python),
              "there is no Python interpreter {} on host {}; the run needs the same installation on every machine",
              plan_.python, facts_.host);
  if (!ticket_.one_rank) {
    ranks_ = static_cast<int>(plan_.slots.size());
    check_binding(options, facts_, ranks_);
  }
  logs_ = prepare_logs(options, plan_.first_rank);
  claim_port();
}

int Agent::run_ranks(ControlClient& control, const AgentGo& go) {
  // Gloo picks the interface by looking up the host's name, which on many systems means 127.0.1.1: give it the one that
  // leads to the rest of the run.
  const std::string address = control.local_address();
  const std::string interface = is_loopback(address) ? "" : interface_of(address);
  if (!interface.empty()) facts_.environment.emplace("GLOO_SOCKET_IFNAME", interface);

  RankSettings settings{plan_.python, go.master_addr, go.master_port, std::nullopt, plan_.restart_count};
  if (!ticket_.one_rank && !hides_gpus(facts_)) {
    settings.visible_devices = fmt::format("{}", fmt::join(plan_.slots, ","));
  }
  const std::vector<RankLaunch> ranks = make_rank_set(plan_.options, settings, go.first_rank, ranks_, logs_, facts_);
  SupervisorOptions supervision;
  supervision.log_level = plan_.options.log_level;
  supervision.grace = std::chrono::milliseconds(plan_.kill_grace_ms);
  const RunOutcome outcome = supervise_ranks(ranks, supervision, &control);
  AgentDone done{outcome.code(), {}};
  if (outcome.stop_signal != 0 && !outcome.failure)
    done.problem = fmt::format("it was stopped by signal {}", outcome.stop_signal);
  if (!control.lost().empty()) {
    Message(plan_.options.log_level)
        .error("host {}: the launcher is gone or cut off ({}); ended {} ranks", facts_.host, control.lost(), ranks_);
    return 1;
  }
  control.done(done);
  return done.code;
}

int Agent::run() {
  facts_.environment = environment_variables();
  if (ticket_.one_rank) ticket_.index = rank_from_environment(facts_);
  DS_CHECK_AS(ConfigError, ticket_.index >= 0, "--agent_index must be at least 0, found {}", ticket_.index);
  ControlClient control(ticket_, token_);
  try {
    std::optional<AgentPlan> plan = control.hello({ticket_.index, host_name(), current_process()}, kPlanTimeout);
    if (!plan) return control.lost().empty() ? 0 : 1;
    plan_ = std::move(*plan);
    prepare();
    control.ready(port_ ? port_->number() : 0);
    const std::optional<AgentGo> go = control.wait_go(kGoTimeout);
    if (!go) return control.lost().empty() ? 0 : 1;
    return run_ranks(control, *go);
  } catch (const std::exception& error) {
    control.done({1, error.what()});
    return 1;
  }
}

}  // namespace

std::string agent_token(const LauncherOptions& options) {
  if (const auto token = environment(kTokenVariable)) return *token;
  std::string token = options.agent_token;
  if (token.empty()) std::getline(std::cin, token);
  while (token.ends_with('\r')) token.pop_back();
  DS_CHECK_AS(ConfigError, !token.empty(),
              "--agent: no token in the environment or on standard input; the option is "
              "for the launcher itself");
  return token;
}

int run_agent(AgentTicket ticket, const std::string& token) {
  return Agent(std::move(ticket), token).run();
}

}  // namespace deepscale
