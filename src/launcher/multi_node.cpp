#include "launcher/multi_node.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>

#include "base/environment.h"
#include "base/error.h"
#include "launcher/backend.h"
#include "launcher/control.h"
#include "launcher/exported_environment.h"
#include "launcher/message.h"
#include "launcher/remote_command.h"
#include "platform/files.h"
#include "platform/machine.h"
#include "platform/random.h"
#include "platform/tcp.h"

namespace deepscale {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kStep{20};
/// A backend program that ends is given this long for its agents' last words, which take another way.
constexpr milliseconds kLastWords{1000};

enum class AgentState : uint8_t { kStarting, kPreparing, kReady, kDone, kLost };

struct AgentRecord {
  AgentState state = AgentState::kStarting;
  AgentHello hello;
  int port = 0;
  RankPlace first_rank;
  int ranks = 1;
};

/// A started ssh, pdsh, mpirun, srun or local agent.
struct Starter {
  BackendProcess process;
  ProcessId id = 0;
  std::optional<ExitStatus> ended;
  Clock::time_point ended_at;
};

/// The last line that says something: mpirun frames its messages with dashes.
std::string last_words(const std::vector<std::string>& lines) {
  const auto says_something = [](const std::string& line) {
    return std::any_of(line.begin(), line.end(), [](unsigned char c) { return std::isalnum(c) != 0; });
  };
  const auto found = std::find_if(lines.rbegin(), lines.rend(), says_something);
  return found == lines.rend() ? "" : *found;
}

class MultiNodeRun {
 public:
  MultiNodeRun(const LauncherOptions& options, const LaunchPlan& plan, const MachineFacts& facts,
               const std::string& python, int restart_count, const MultiNodeOptions& timing)
      : options_(options),
        plan_(plan),
        facts_(facts),
        python_(python),
        restart_count_(restart_count),
        timing_(timing),
        message_(options.log_level),
        run_(random_token()),
        token_(random_token()),
        control_(run_, token_, timing.peer_timeout) {}
  ~MultiNodeRun() {
    if (!host_list_.empty()) remove_file(host_list_);
  }
  MultiNodeRun(const MultiNodeRun&) = delete;
  MultiNodeRun& operator=(const MultiNodeRun&) = delete;

  MultiNodeOutcome run();

 private:
  using Words = std::vector<std::string>;

  void start();
  AgentTicket ticket() const;
  AgentPlan agent_plan(int index) const;
  std::vector<BackendProcess> backend_processes();
  std::string write_host_list();
  void wait_for_agents();
  void place_ranks();
  void say_go();
  void watch();
  void wait_for_output();
  void stop_all();
  void note_stop_request();

  /// Waits a step and handles everything that has happened.
  void step();
  void handle_process(const ProcessEvent& event);
  void handle_agent(const AgentEvent& event);
  void check_starters();
  void lose_hosts_that_pdsh_blames(const Words& lines);
  void lose(int index, const std::string& why);
  void fail(const std::string& text);
  bool over() const { return outcome_.failed || stop_request_.has_value(); }
  bool starters_running() const;
  size_t count(AgentState state) const;
  std::string name_of(int index) const;
  Words late_names() const;  ///< of agents that are not ready

  const LauncherOptions& options_;
  const LaunchPlan& plan_;
  const MachineFacts& facts_;
  const std::string& python_;
  int restart_count_;
  MultiNodeOptions timing_;
  Message message_;
  std::string run_;
  std::string token_;
  Variables variables_;
  ControlServer control_;
  ProcessTree tree_;
  std::vector<AgentRecord> agents_;
  std::vector<Starter> starters_;
  std::optional<ProcessEvent> stop_request_;
  std::optional<RankFailure> failure_;
  int failed_agent_ = -1;
  std::string problem_;
  std::string host_list_;
  bool stopping_ = false;
  MultiNodeOutcome outcome_;
};

size_t MultiNodeRun::count(AgentState state) const {
  return static_cast<size_t>(
      std::count_if(agents_.begin(), agents_.end(), [&](const AgentRecord& agent) { return agent.state == state; }));
}

/// The host as the user calls it, with the rank where there is one agent per rank.
std::string MultiNodeRun::name_of(int index) const {
  const AgentRecord& agent = agents_[static_cast<size_t>(index)];
  if (!starts_every_rank(plan_.backend)) return plan_.hosts[static_cast<size_t>(index)].host;
  return agent.hello.host.empty() ? fmt::format("rank {}", index)
                                  : fmt::format("{} (rank {})", agent.hello.host, index);
}

MultiNodeRun::Words MultiNodeRun::late_names() const {
  Words names;
  for (size_t index = 0; index < agents_.size(); ++index) {
    const AgentState state = agents_[index].state;
    if (state == AgentState::kStarting || state == AgentState::kPreparing)
      names.push_back(name_of(static_cast<int>(index)));
  }
  return names;
}

void MultiNodeRun::fail(const std::string& text) {
  if (over()) return;
  outcome_.failed = true;
  outcome_.code = 1;
  problem_ = text;
}

void MultiNodeRun::lose(int index, const std::string& why) {
  AgentRecord& agent = agents_[static_cast<size_t>(index)];
  if (agent.state == AgentState::kDone || agent.state == AgentState::kLost) return;
  const bool before_start = agent.state == AgentState::kStarting || agent.state == AgentState::kPreparing;
  agent.state = AgentState::kLost;
  if (stopping_) return;
  outcome_.lost.push_back(index);
  fail(before_start
           ? fmt::format("host {} cannot be used: {}", name_of(index), why)
           : fmt::format("host {} is lost: {}; it is down, cut off, or its agent was killed", name_of(index), why));
}

AgentTicket MultiNodeRun::ticket() const {
  AgentTicket ticket;
  ticket.run = run_;
  ticket.addresses = own_addresses();
  ticket.addresses.emplace_back("127.0.0.1");  // the only one of a machine without network
  ticket.port = control_.port();
  ticket.peer_timeout_s = static_cast<int>(timing_.peer_timeout.count());
  ticket.one_rank = starts_every_rank(plan_.backend);
  return ticket;
}

AgentPlan MultiNodeRun::agent_plan(int index) const {
  AgentPlan plan;
  const bool one_rank = starts_every_rank(plan_.backend);
  if (!one_rank) plan.slots = plan_.hosts[static_cast<size_t>(index)].slots;
  plan.first_rank = one_rank ? index : plan_.first_rank(index);
  plan.restart_count = restart_count_;
  plan.python = python_;
  plan.working_directory = std::filesystem::current_path().string();
  plan.variables = variables_;
  plan.options = options_;
  plan.kill_grace_ms = supervisor_options(options_.log_level).grace.count();
  return plan;
}

/// MVAPICH's list of hosts, one per line. Removed with the run.
std::string MultiNodeRun::write_host_list() {
  host_list_ = (std::filesystem::temp_directory_path() / ("deepspeed_mvapich_hostfile_" + random_token())).string();
  std::ofstream file(host_list_);
  for (const HostSlots& host : plan_.hosts) file << host.host << '\n';
  DS_CHECK_AS(IoError, file.flush().good(), "cannot write {}", host_list_);
  return host_list_;
}

std::vector<BackendProcess> MultiNodeRun::backend_processes() {
  AgentTicket agent = ticket();
  AgentCommand command{executable_path().string(), encode_ticket(agent), token_};
  if (plan_.backend == Backend::kPdsh) {
    const auto user = facts_.environment.find("PDSH_SSH_ARGS_APPEND");
    return {pdsh_agents(options_, plan_, user == facts_.environment.end() ? "" : user->second, command)};
  }
  if (starts_every_rank(plan_.backend)) {
    const std::string list = plan_.backend == Backend::kMvapich ? write_host_list() : "";
    const std::string hostfile = facts_.hostfile.empty() ? "" : facts_.hostfile_path;
    return {rank_starter(options_, plan_, variables_, hostfile, list, has_interface("eth0"), command)};
  }
  std::vector<BackendProcess> processes;
  for (size_t node = 0; node < plan_.hosts.size(); ++node) {
    agent.index = static_cast<int>(node);
    command.ticket = encode_ticket(agent);
    const std::string& host = plan_.hosts[node].host;
    const bool here = host == "localhost" || facts_.own_names.contains(host);
    processes.push_back(here ? local_agent(command, agent.index) : ssh_agent(options_, host, command, agent.index));
  }
  return processes;
}

void MultiNodeRun::start() {
  variables_ = exported_variables(facts_.environment, std::filesystem::current_path().string());
  for (const auto& [name, value] : read_environment_files(facts_.environment)) variables_[name] = value;
  agents_.resize(static_cast<size_t>(starts_every_rank(plan_.backend) ? plan_.ranks : plan_.nodes));
  for (BackendProcess& process : backend_processes()) {
    const std::string& program = process.arguments[0];
    DS_CHECK_AS(IoError, find_program(program).has_value(),
                "--launcher {}: the program {} is not installed on this machine", backend_name(plan_.backend), program);
    ProcessSpec spec;
    spec.arguments = process.arguments;
    std::map<std::string, std::string> environment = facts_.environment;
    for (const auto& [name, value] : process.variables) environment[name] = value;
    for (const auto& [name, value] : environment) spec.environment.push_back(fmt::format("{}={}", name, value));
    spec.input = process.input;
    spec.keep_error_tail = true;
    spec.own_group = true;  // the terminal's Ctrl-C is ours to pass on, in good order
    message_.debug("starting {}", fmt::join(spec.arguments, " "));
    const ProcessId id = tree_.start(spec);
    starters_.push_back({std::move(process), id, std::nullopt, {}});
  }
}

void MultiNodeRun::handle_process(const ProcessEvent& event) {
  if (event.kind == ProcessEvent::Kind::kStopRequested && !stop_request_) stop_request_ = event;
  if (event.kind != ProcessEvent::Kind::kExited) return;
  for (Starter& starter : starters_) {
    if (starter.id != event.process) continue;
    starter.ended = event.status;
    starter.ended_at = Clock::now();
    message_.debug("{} ended: {}", starter.process.arguments[0], event.status.describe());
  }
}

void MultiNodeRun::handle_agent(const AgentEvent& event) {
  if (event.index < 0 || event.index >= static_cast<int>(agents_.size())) return;
  AgentRecord& agent = agents_[static_cast<size_t>(event.index)];
  switch (event.kind) {
    case AgentEvent::Kind::kHello:
      agent.hello = event.hello;
      agent.state = AgentState::kPreparing;
      control_.plan(event.index, agent_plan(event.index));
      message_.debug("host {} has answered: process {}", name_of(event.index), event.hello.process);
      break;
    case AgentEvent::Kind::kReady:
      agent.port = event.port;
      agent.state = AgentState::kReady;
      break;
    case AgentEvent::Kind::kFailed:
      if (over()) break;
      outcome_.failed = true;
      failure_ = event.failure;
      failed_agent_ = event.index;
      outcome_.code = event.failure.status.shell_code();
      break;
    case AgentEvent::Kind::kDone:
      agent.state = AgentState::kDone;
      if (event.done.code == 0 || over()) break;
      fail(fmt::format("host {}: {}", name_of(event.index), event.done.problem));
      outcome_.code = event.done.code;
      break;
    case AgentEvent::Kind::kLost:
      lose(event.index, event.reason);
      break;
  }
}

/// pdsh goes on as long as one of its hosts does, so that its end tells nothing about the others.
void MultiNodeRun::lose_hosts_that_pdsh_blames(const Words& lines) {
  for (int index = 0; index < static_cast<int>(agents_.size()); ++index) {
    if (agents_[static_cast<size_t>(index)].state != AgentState::kStarting) continue;
    const std::string why = blamed_by_pdsh(lines, plan_.hosts[static_cast<size_t>(index)].host);
    if (!why.empty()) lose(index, why);
  }
}

/// An agent whose starter has ended without it ever answering will not come any more.
void MultiNodeRun::check_starters() {
  for (const Starter& starter : starters_) {
    const std::vector<std::string> lines = tree_.error_tail(starter.id);
    if (!starter.ended && plan_.backend == Backend::kPdsh) lose_hosts_that_pdsh_blames(lines);
    if (!starter.ended || Clock::now() - starter.ended_at < kLastWords) continue;
    for (int index = 0; index < static_cast<int>(agents_.size()); ++index) {
      const std::vector<int>& own = starter.process.agents;
      if (!own.empty() && std::find(own.begin(), own.end(), index) == own.end()) continue;
      if (agents_[static_cast<size_t>(index)].state != AgentState::kStarting) continue;
      const std::string last = last_words(lines);
      const std::string said = last.empty() ? "" : ": " + last;
      lose(index, fmt::format("{} ended with {}{}", starter.process.arguments[0], starter.ended->describe(), said));
    }
  }
}

void MultiNodeRun::step() {
  for (ProcessEvent event = tree_.wait(kStep);; event = tree_.wait(milliseconds(0))) {
    if (event.kind == ProcessEvent::Kind::kTimeout) break;
    handle_process(event);
  }
  for (const AgentEvent& event : control_.poll()) handle_agent(event);
  check_starters();
}

void MultiNodeRun::wait_for_agents() {
  constexpr std::chrono::seconds kFirstWord{2};
  constexpr std::chrono::seconds kNextWords{10};
  const Clock::time_point begin = Clock::now();
  Clock::time_point counted_from = begin;
  Clock::time_point next_word = begin + kFirstWord;
  while (!over() && count(AgentState::kReady) < agents_.size()) {
    step();
    const Clock::time_point now = Clock::now();
    // A job may stand in Slurm's queue for days; its time counts from the first task's answer.
    if (plan_.backend == Backend::kSlurm && count(AgentState::kStarting) == agents_.size()) counted_from = now;
    if (now > counted_from + timing_.start_timeout) {
      for (int index = 0; index < static_cast<int>(agents_.size()); ++index) {
        if (agents_[static_cast<size_t>(index)].state != AgentState::kReady) outcome_.lost.push_back(index);
      }
      fail(fmt::format("no answer from {} within {} s (DEEPSCALE_START_TIMEOUT_S)", fmt::join(late_names(), ", "),
                       timing_.start_timeout.count()));
    } else if (now > next_word) {
      const std::vector<std::string> late = late_names();
      message_.info("waiting for {} of {}: {} ({}, {:.0f} s)", late.size(), agents_.size(), fmt::join(late, ", "),
                    backend_name(plan_.backend), std::chrono::duration<double>(now - begin).count());
      next_word = now + kNextWords;
    }
  }
}

void MultiNodeRun::place_ranks() {
  if (!starts_every_rank(plan_.backend)) {
    for (int node = 0; node < plan_.nodes; ++node) {
      const int slots = static_cast<int>(plan_.hosts[static_cast<size_t>(node)].slots.size());
      AgentRecord& agent = agents_[static_cast<size_t>(node)];
      agent.first_rank = {plan_.first_rank(node), plan_.ranks, 0, slots, node, plan_.nodes};
      agent.ranks = slots;
    }
    return;
  }
  // mpirun and srun chose the machines: the agents say which.
  std::vector<std::string> machines;
  std::map<std::string, int> sizes;
  for (AgentRecord& agent : agents_) {
    const std::string& host = agent.hello.host;
    if (sizes[host]++ == 0) machines.push_back(host);
    agent.first_rank.local_rank = sizes[host] - 1;
  }
  for (size_t rank = 0; rank < agents_.size(); ++rank) {
    RankPlace& place = agents_[rank].first_rank;
    const std::string& host = agents_[rank].hello.host;
    place.rank = static_cast<int>(rank);
    place.world_size = plan_.ranks;
    place.local_size = sizes[host];
    place.node = static_cast<int>(std::find(machines.begin(), machines.end(), host) - machines.begin());
    place.nodes = static_cast<int>(machines.size());
  }
}

void MultiNodeRun::say_go() {
  AgentGo go;
  go.master_addr = options_.master_addr.empty() ? control_.address_of(0) : options_.master_addr;
  go.master_port = agents_[0].port;
  message_.debug("world size {}, rendezvous {}:{}", plan_.ranks, go.master_addr, go.master_port);
  for (size_t index = 0; index < agents_.size(); ++index) {
    go.first_rank = agents_[index].first_rank;
    control_.go(static_cast<int>(index), go);
  }
}

void MultiNodeRun::watch() {
  while (!over() && count(AgentState::kDone) < agents_.size()) step();
}

bool MultiNodeRun::starters_running() const {
  return std::any_of(starters_.begin(), starters_.end(), [](const Starter& starter) { return !starter.ended; });
}

/// After a good end the rest of the ranks' output is still on its way: it comes through the starters, while the agents'
/// last words came over the control channel.
void MultiNodeRun::wait_for_output() {
  constexpr std::chrono::seconds kWord{5};
  constexpr std::chrono::minutes kLimit{5};
  const Clock::time_point begin = Clock::now();
  Clock::time_point next_word = begin + kWord;
  while (starters_running() && !over() && Clock::now() < begin + kLimit) {
    step();
    if (Clock::now() < next_word) continue;
    message_.info("all ranks have ended; waiting for the rest of their output ({})", backend_name(plan_.backend));
    next_word += kWord * 2;
  }
}

void MultiNodeRun::stop_all() {
  stopping_ = true;
  const bool interrupt = stop_request_ && stop_request_->signal == SIGINT;
  control_.stop(interrupt ? StopSignal::kInterrupt : StopSignal::kTerminate);
  // The agents have their own grace; beyond it they are killed with their starters, and far ones by the lost
  // connection.
  const Clock::time_point deadline = Clock::now() + supervisor_options(options_.log_level).grace + milliseconds(300);
  const auto waiting = [&] {
    return count(AgentState::kReady) + count(AgentState::kPreparing) > 0 && Clock::now() < deadline;
  };
  while (waiting()) step();
  const Clock::time_point end = Clock::now() + milliseconds(stop_request_ ? 300 : 1000);
  while (starters_running() && Clock::now() < end) step();
  tree_.send_to_descendants(StopSignal::kTerminate);
  const Clock::time_point kill = Clock::now() + milliseconds(200);
  while (tree_.has_descendants() && Clock::now() < kill) step();
}

void MultiNodeRun::note_stop_request() {
  if (!stop_request_ || outcome_.stop_signal != 0) return;
  outcome_.stop_signal = stop_request_->signal;
  if (outcome_.failed) return;  // it came while a failed run was being ended
  message_.info("stop requested by signal {}; ending {} ranks on {} machines", stop_request_->signal, plan_.ranks,
                plan_.nodes);
  outcome_.code = 128 + stop_request_->signal;
}

MultiNodeOutcome MultiNodeRun::run() {
  start();
  wait_for_agents();
  if (!over()) {
    place_ranks();
    say_go();
    outcome_.started = true;
    watch();
  }
  if (!over()) wait_for_output();
  note_stop_request();
  stop_all();
  note_stop_request();
  tree_.flush_captured(milliseconds(1000));
  if (failure_ && outcome_.failed) {
    const AgentRecord& agent = agents_[static_cast<size_t>(failed_agent_)];
    std::string host = agent.hello.host;
    if (!starts_every_rank(plan_.backend) && name_of(failed_agent_) != host)
      host += " (" + name_of(failed_agent_) + ")";
    report_failure(*failure_, host, options_.log_level);
  } else if (outcome_.failed) {
    message_.error("{}", problem_);
  }
  return outcome_;
}

}  // namespace

MultiNodeOptions multi_node_options() {
  MultiNodeOptions options;
  const auto seconds = [](const char* name, std::chrono::seconds& value) {
    const auto given = environment_int(name);
    if (!given) return;
    DS_CHECK_AS(ConfigError, *given >= 1, "environment variable {} must be at least 1, found {}", name, *given);
    value = std::chrono::seconds(*given);
  };
  seconds("DEEPSCALE_START_TIMEOUT_S", options.start_timeout);
  seconds("DEEPSCALE_HOST_TIMEOUT_S", options.peer_timeout);
  return options;
}

MultiNodeOutcome run_multi_node(const LauncherOptions& options, const LaunchPlan& plan, const MachineFacts& facts,
                                const std::string& python, int restart_count, const MultiNodeOptions& timing) {
  return MultiNodeRun(options, plan, facts, python, restart_count, timing).run();
}

}  // namespace deepscale
