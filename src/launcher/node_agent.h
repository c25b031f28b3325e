// The launcher on the other machines of a run: connects to the launcher, starts its machine's ranks (or, under mpirun
// and srun, one rank), and reports. It ends its ranks when the launcher says so, is gone, or does not answer.
#pragma once

#include <string>

#include "launcher/agent_plan.h"

namespace deepscale {

/// The run's token: from the environment (kTokenVariable), the command line, or else the first line of standard input.
/// Throws ConfigError when there is none.
std::string agent_token(const LauncherOptions& options);

/// Runs the agent to its end and returns its exit code. Reads the number of the rank from the environment where the
/// ticket says that mpirun or srun started it. Throws ConfigError and IoError before anything runs.
int run_agent(AgentTicket ticket, const std::string& token);

}  // namespace deepscale
