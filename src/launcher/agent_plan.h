// What the launcher tells the processes that it starts on other machines (agents): everything that they need to start
// their ranks, as one word for a command line. Pure.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "launcher/options.h"
#include "launcher/resource_filter.h"

namespace deepscale {

struct AgentPlan {
  std::string token;                           ///< proves to the launcher that a connection belongs to this run
  std::vector<std::string> control_addresses;  ///< numeric addresses of the launcher, tried in order
  int control_port = 0;
  int peer_timeout_s = 10;  ///< a launcher that does not answer for this long is gone
  int index = -1;           ///< of this agent; -1: given beside the plan, or by mpirun or srun in the environment
  bool one_rank = false;    ///< mpirun or srun starts one agent per rank
  std::vector<HostSlots> hosts;
  int restart_count = 0;
  std::string python;
  std::string working_directory;
  std::map<std::string, std::string> variables;  ///< added to the machine's own environment
  LauncherOptions options;  ///< script, arguments and what concerns the ranks; the rest is left at its defaults
};

std::string encode_agent_plan(const AgentPlan& plan);

/// Throws ConfigError when the text is no such plan.
AgentPlan decode_agent_plan(const std::string& text);

}  // namespace deepscale
