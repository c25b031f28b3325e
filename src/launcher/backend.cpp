#include "launcher/backend.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/error.h"
#include "launcher/agent_plan.h"
#include "launcher/remote_command.h"
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

Strings agent_words(const AgentCommand& command) {
  return {command.launcher, "--agent", command.ticket};
}

Strings host_names(const LaunchPlan& plan) {
  Strings names;
  for (const HostSlots& host : plan.hosts) names.push_back(host.host);
  return names;
}

std::string joined(const Strings& words, const char* separator) {
  return fmt::format("{}", fmt::join(words, separator));
}

std::string names_of(const Variables& variables) {
  Strings names;
  for (const auto& [name, value] : variables) names.push_back(name);
  return joined(names, ",");
}

/// MPI implementations that are installed beside each other have their own names for mpirun.
std::string mpirun_name(Backend backend) {
  if (backend == Backend::kOpenMpi) return find_program("mpirun.openmpi") ? "mpirun.openmpi" : "mpirun";
  if (backend == Backend::kMpich) return find_program("mpirun.mpich") ? "mpirun.mpich" : "mpirun";
  return "mpirun";
}

Strings openmpi_words(const LauncherOptions& options, const LaunchPlan& plan, const Variables& variables,
                      const std::string& hostfile, bool has_eth0) {
  Strings words = {mpirun_name(plan.backend), "-n", std::to_string(plan.ranks)};
  if (!hostfile.empty()) append(words, {"-hostfile", hostfile});
  append(words, {"--mca", "btl", "^openib"});
  const bool chosen = options.launcher_args.find("btl_tcp_if_") != std::string::npos;
  if (has_eth0 && !chosen) append(words, {"--mca", "btl_tcp_if_include", "eth0"});
  append(words, further_arguments(options));
  for (const auto& [name, value] : variables) append(words, {"-x", name});
  return words;
}

Strings mpich_words(const LauncherOptions& options, const LaunchPlan& plan, const Variables& variables) {
  Strings words = {mpirun_name(plan.backend), "-n", std::to_string(plan.ranks), "-ppn",
                   std::to_string(plan.hosts[0].slots.size())};
  append(words, further_arguments(options));
  append(words, {"-genvlist", names_of(variables)});
  append(words, {"-hosts", joined(host_names(plan), ",")});
  return words;
}

Strings mvapich_words(const LauncherOptions& options, const LaunchPlan& plan, const Variables& variables,
                      const std::string& hostfile) {
  Strings words = {
      "mpirun",     "-np",   std::to_string(plan.ranks), "-ppn", std::to_string(plan.hosts[0].slots.size()),
      "--hostfile", hostfile};
  append(words, further_arguments(options));
  append(words, {"-genvlist", names_of(variables)});
  return words;
}

/// A block per rank, so that each one knows its number also where the library does not say it.
Strings impi_words(const LauncherOptions& options, const LaunchPlan& plan, const Variables& variables,
                   const AgentCommand& command) {
  Strings words = {"mpirun", "-ppn", std::to_string(plan.hosts[0].slots.size())};
  append(words, further_arguments(options));
  append(words, {"-genvlist", names_of(variables)});
  append(words, {"-genv", "I_MPI_PIN", "0", "-hosts", joined(host_names(plan), ",")});
  for (int rank = 0; rank < plan.ranks; ++rank) {
    if (rank > 0) words.emplace_back(":");
    const int local = rank % static_cast<int>(plan.hosts[0].slots.size());
    append(words, {"-n", "1", "-env", "RANK", std::to_string(rank), "-env", "LOCAL_RANK", std::to_string(local)});
    append(words, agent_words(command));
  }
  return words;
}

Strings slurm_words(const LauncherOptions& options, const LaunchPlan& plan) {
  Strings words = {"srun", "-n", std::to_string(plan.ranks)};
  append(words, further_arguments(options));
  if (!options.slurm_comment.empty()) append(words, {"--comment", options.slurm_comment});
  if (!options.slurm_account.empty()) append(words, {"--account", options.slurm_account});
  if (!options.include.empty() || !options.exclude.empty())
    append(words, {"--nodelist", joined(host_names(plan), ","), "--nodes", std::to_string(plan.hosts.size())});
  if (options.num_nodes > 0) append(words, {"--nodes", std::to_string(options.num_nodes)});
  if (options.ranks_per_node > 0) {
    // Machines without GPUs have no such resource, and Slurm refuses the request.
    const std::string per_node = std::to_string(options.ranks_per_node);
    append(words, {"--ntasks-per-node", per_node});
    if (!plan.cpu_only) append(words, {"--gpus-per-node", per_node});
  }
  words.emplace_back("--export=ALL");
  return words;
}

}  // namespace

BackendProcess local_agent(const AgentCommand& command, int index) {
  return {agent_words(command), {{kTokenVariable, command.token}}, {}, {index}};
}

BackendProcess ssh_agent(const LauncherOptions& options, const std::string& host, const AgentCommand& command,
                         int index) {
  BackendProcess process;
  process.arguments = {"ssh"};
  append(process.arguments, ssh_options(options.ssh_port));
  append(process.arguments, further_arguments(options));
  process.arguments.push_back(host);
  process.arguments.push_back(fmt::format("{} --agent {}", shell_quoted(command.launcher), command.ticket));
  process.input = command.token + "\n";
  process.agents = {index};
  return process;
}

BackendProcess pdsh_agents(const LauncherOptions& options, const LaunchPlan& plan, const std::string& ssh_arguments,
                           const AgentCommand& command) {
  BackendProcess process;
  const std::string own = joined(ssh_options(options.ssh_port), " ");
  process.variables["PDSH_SSH_ARGS_APPEND"] = ssh_arguments.empty() ? own : ssh_arguments + " " + own;
  process.arguments = pdsh_start(host_names(plan));
  append(process.arguments, further_arguments(options));
  // pdsh puts the number of the host within the list in the place of %n.
  process.arguments.push_back(fmt::format("{} --agent {} --agent_token {} --agent_index %n",
                                          shell_quoted(command.launcher), command.ticket, command.token));
  return process;
}

BackendProcess rank_starter(const LauncherOptions& options, const LaunchPlan& plan, const Variables& variables,
                            const std::string& hostfile, const std::string& mvapich_hostfile, bool has_eth0,
                            const AgentCommand& command) {
  BackendProcess process;
  process.variables = variables;
  process.variables[kTokenVariable] = command.token;
  const Variables& exported = process.variables;
  switch (plan.backend) {
    case Backend::kOpenMpi:
      process.arguments = openmpi_words(options, plan, exported, hostfile, has_eth0);
      break;
    case Backend::kMpich:
      process.arguments = mpich_words(options, plan, exported);
      break;
    case Backend::kMvapich:
      process.arguments = mvapich_words(options, plan, exported, mvapich_hostfile);
      break;
    case Backend::kSlurm:
      process.arguments = slurm_words(options, plan);
      break;
    case Backend::kImpi:
      process.arguments = impi_words(options, plan, exported, command);
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
