#include "launcher/backend.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/error.h"
#include "launcher/text.h"
#include "platform/machine.h"

namespace deepscale {
namespace {

using Strings = std::vector<std::string>;
using Variables = std::map<std::string, std::string>;

void append(Strings& words, const Strings& more) {
  words.insert(words.end(), more.begin(), more.end());
}

Strings further_arguments(const LauncherOptions& options) {
  return split_shell_words(options.launcher_args, "--launcher_args");
}

/// ssh must not ask for a password that nobody can type, and must not wait for ever for a machine that is down.
Strings ssh_options(const LauncherOptions& options) {
  Strings words = {"-o", "BatchMode=yes", "-o", "ConnectTimeout=15"};
  if (options.ssh_port) append(words, {"-p", std::to_string(*options.ssh_port)});
  return words;
}

Strings agent_words(const AgentCommand& command) {
  return {command.launcher, "--agent", command.plan};
}

Strings host_names(const LaunchPlan& plan) {
  Strings names;
  for (const HostSlots& host : plan.hosts) names.push_back(host.host);
  return names;
}

std::string joined(const Strings& words, const char* separator) {
  return fmt::format("{}", fmt::join(words, separator));
}

/// MPI implementations that are installed beside each other have their own names for mpirun.
std::string mpirun_name(Backend backend) {
  if (backend == Backend::kOpenMpi) return find_program("mpirun.openmpi") ? "mpirun.openmpi" : "mpirun";
  if (backend == Backend::kMpich) return find_program("mpirun.mpich") ? "mpirun.mpich" : "mpirun";
  return "mpirun";
}

Strings openmpi_words(const LauncherOptions& options, const LaunchPlan& plan, const Variables& variables,
                      const std::string& hostfile, bool has_eth0) {
  Strings words = {mpirun_name(plan.backend), "-n", std::to_string(plan.ranks), "-hostfile", hostfile};
  append(words, {"--mca", "btl", "^openib"});
  const bool chosen = options.launcher_args.find("btl_tcp_if_") != std::string::npos;
  if (has_eth0 && !chosen) append(words, {"--mca", "btl_tcp_if_include", "eth0"});
  append(words, further_arguments(options));
  for (const auto& [name, value] : variables) append(words, {"-x", fmt::format("{}={}", name, value)});
  return words;
}

Strings mpich_words(const LauncherOptions& options, const LaunchPlan& plan, const Variables& variables) {
  Strings words = {mpirun_name(plan.backend), "-n", std::to_string(plan.ranks), "-ppn",
                   std::to_string(plan.hosts[0].slots.size())};
  append(words, further_arguments(options));
  for (const auto& [name, value] : variables) append(words, {"-genv", fmt::format("{}={}", name, value)});
  append(words, {"-hosts", joined(host_names(plan), ",")});
  return words;
}

Strings mvapich_words(const LauncherOptions& options, const LaunchPlan& plan, const Variables& variables,
                      const std::string& hostfile) {
  Strings words = {
      "mpirun",     "-np",   std::to_string(plan.ranks), "-ppn", std::to_string(plan.hosts[0].slots.size()),
      "--hostfile", hostfile};
  append(words, further_arguments(options));
  for (const auto& [name, value] : variables) append(words, {"-env", fmt::format("{}={}", name, value)});
  return words;
}

/// A block per rank, so that each one knows its number also where the library does not say it.
Strings impi_words(const LauncherOptions& options, const LaunchPlan& plan, const Variables& variables,
                   const AgentCommand& command) {
  Strings words = {"mpirun", "-ppn", std::to_string(plan.hosts[0].slots.size())};
  append(words, further_arguments(options));
  for (const auto& [name, value] : variables) append(words, {"-genv", name, value});
  append(words, {"-genv", "I_MPI_PIN", "0", "-hosts", joined(host_names(plan), ",")});
  for (int rank = 0; rank < plan.ranks; ++rank) {
    if (rank > 0) words.emplace_back(":");
    const int local = rank % static_cast<int>(plan.hosts[0].slots.size());
    append(words, {"-n", "1", "-env", "RANK", std::to_string(rank), "-env", "LOCAL_RANK", std::to_string(local)});
    append(words, agent_words(command));
  }
  return words;
}

Strings slurm_words(const LauncherOptions& options, const LaunchPlan& plan, const Variables& variables) {
  Strings words = {"srun", "-n", std::to_string(plan.ranks)};
  append(words, further_arguments(options));
  if (!options.slurm_comment.empty()) append(words, {"--comment", options.slurm_comment});
  if (!options.include.empty() || !options.exclude.empty())
    append(words, {"--nodelist", joined(host_names(plan), ","), "--nodes", std::to_string(plan.hosts.size())});
  if (options.num_nodes > 0) append(words, {"--nodes", std::to_string(options.num_nodes)});
  if (options.ranks_per_node > 0) {
    // Machines without GPUs have no such resource, and Slurm refuses the request.
    const std::string per_node = std::to_string(options.ranks_per_node);
    append(words, {"--ntasks-per-node", per_node});
    if (!plan.cpu_only) append(words, {"--gpus-per-node", per_node});
  }
  // A comma or a line break in a value would end it; those variables reach the ranks in the agents' plan.
  std::string exported = "ALL";
  for (const auto& [name, value] : variables) {
    if (value.find_first_of(",\n") == std::string::npos) exported += fmt::format(",{}={}", name, value);
  }
  words.push_back("--export=" + exported);
  return words;
}

}  // namespace

BackendProcess local_agent(const AgentCommand& command, int index) {
  return {agent_words(command), {}, {index}};
}

BackendProcess ssh_agent(const LauncherOptions& options, const std::string& host, const AgentCommand& command,
                         int index) {
  BackendProcess process;
  process.arguments = {"ssh", "-n"};  // it must not read our standard input
  append(process.arguments, ssh_options(options));
  append(process.arguments, further_arguments(options));
  process.arguments.push_back(host);
  process.arguments.push_back(fmt::format("{} --agent {}", shell_quoted(command.launcher), command.plan));
  process.agents = {index};
  return process;
}

BackendProcess pdsh_agents(const LauncherOptions& options, const LaunchPlan& plan, const AgentCommand& command) {
  BackendProcess process;
  process.variables["PDSH_SSH_ARGS_APPEND"] = " " + joined(ssh_options(options), " ");
  process.arguments = {"pdsh", "-R", "ssh", "-S", "-f", "1024", "-w", joined(host_names(plan), ",")};
  append(process.arguments, further_arguments(options));
  // pdsh puts the number of the host within the list in the place of %n.
  process.arguments.push_back(
      fmt::format("{} --agent {} --agent_index %n", shell_quoted(command.launcher), command.plan));
  return process;
}

BackendProcess rank_starter(const LauncherOptions& options, const LaunchPlan& plan, const Variables& variables,
                            const std::string& hostfile, const std::string& mvapich_hostfile, bool has_eth0,
                            const AgentCommand& command) {
  BackendProcess process;
  switch (plan.backend) {
    case Backend::kOpenMpi:
      process.arguments = openmpi_words(options, plan, variables, hostfile, has_eth0);
      break;
    case Backend::kMpich:
      process.arguments = mpich_words(options, plan, variables);
      break;
    case Backend::kMvapich:
      process.arguments = mvapich_words(options, plan, variables, mvapich_hostfile);
      break;
    case Backend::kSlurm:
      process.arguments = slurm_words(options, plan, variables);
      break;
    case Backend::kImpi:
      process.arguments = impi_words(options, plan, variables, command);
      return process;
    case Backend::kLocal:
    case Backend::kSsh:
    case Backend::kPdsh:
      ds_throw<Error>("{} starts machines, not ranks", backend_name(plan.backend));
  }
  append(process.arguments, agent_words(command));
  return process;
}

}  // namespace deepscale
