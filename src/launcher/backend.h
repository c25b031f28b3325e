// Command lines of the programs that start a run's agents on other machines. Pure.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "launcher/launch_plan.h"
#include "launcher/options.h"

namespace deepscale {

/// What a backend starts, on every machine or for every rank: this launcher as an agent (agent_plan.h).
struct AgentCommand {
  std::string launcher;  ///< path of the executable, the same on every machine
  std::string ticket;    ///< encode_ticket
  std::string token;     ///< secret: not for command lines, which everybody can read, where there is another way
};

/// One program to start here, and the agents that it brings up (indices; empty: all).
struct BackendProcess {
  std::vector<std::string> arguments;
  std::map<std::string, std::string> variables;  ///< added to the program's environment
  std::string input;                             ///< the program's standard input
  std::vector<int> agents;
};

/// The agent on this machine, without any backend.
BackendProcess local_agent(const AgentCommand& command, int index);

/// ssh to one host. The remote shell gets one line.
BackendProcess ssh_agent(const LauncherOptions& options, const std::string& host, const AgentCommand& command,
                         int index);

/// pdsh to all hosts of the plan. It passes neither input nor environment on: the token is on the command line.
/// `ssh_arguments` is what the user has set as PDSH_SSH_ARGS_APPEND.
BackendProcess pdsh_agents(const LauncherOptions& options, const LaunchPlan& plan, const std::string& ssh_arguments,
                           const AgentCommand& command);

/// mpirun or srun over all ranks of the plan. `variables` are exported to the ranks by name: their values do not appear
/// on the command line. `hostfile` is the user's file (empty: none),
/// `mvapich_hostfile` one with a host per line, `has_eth0` whether this machine has an interface of that name (the
/// customary default of Open MPI clusters).
BackendProcess rank_starter(const LauncherOptions& options, const LaunchPlan& plan,
                            const std::map<std::string, std::string>& variables, const std::string& hostfile,
                            const std::string& mvapich_hostfile, bool has_eth0, const AgentCommand& command);

}  // namespace deepscale
