// The launcher on the other machines of a run: connects to the launcher, starts its machine's ranks (or, under mpirun
// and srun, one rank), and reports. It ends its ranks when the launcher says so, is gone, or does not answer.
#pragma once

#include "launcher/agent_plan.h"

namespace deepscale {

/// Runs the agent to its end and returns its exit code. Reads the number of the rank from the environment where the
/// plan says that mpirun or srun started it. Throws ConfigError and IoError before anything runs.
int run_agent(AgentPlan plan);

}  // namespace deepscale
