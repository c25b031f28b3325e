// What the launcher tells the processes that it starts on other machines (agents). The ticket stands on their command
// line, which everybody on those machines can read: it says where the launcher is and nothing that is secret. The plan
// follows over the control channel (control.h), once the agent has shown the run's token. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "launcher/options.h"

namespace deepscale {

struct AgentTicket {
  std::string run;                     ///< public name of the run, by which an agent knows its launcher
  std::vector<std::string> addresses;  ///< numeric addresses of the launcher
  int port = 0;
  int peer_timeout_s = 10;  ///< a launcher that does not answer for this long is gone
  int index = -1;           ///< of this agent; -1: given beside the ticket, or by mpirun or srun in the environment
  bool one_rank = false;    ///< mpirun or srun starts one agent per rank
};

/// One word for a command line: letters, digits, '-' and '_'.
std::string encode_ticket(const AgentTicket& ticket);

/// Throws ConfigError when the text is no ticket, or one of another version of this program.
AgentTicket decode_ticket(const std::string& text);

/// What an agent runs.
struct AgentPlan {
  std::vector<std::string> slots;  ///< of this machine; empty with one_rank
  int first_rank = 0;              ///< global
  int restart_count = 0;
  int64_t kill_grace_ms = 0;
  std::string python;
  std::string working_directory;
  std::map<std::string, std::string> variables;  ///< added to the machine's own environment
  LauncherOptions options;  ///< script, arguments and what concerns the ranks; the rest is left at its defaults
};

/// As one word, which keeps bytes that are no UTF-8.
std::string encode_plan(const AgentPlan& plan);
/// Throws ConfigError when the text is no plan.
AgentPlan decode_plan(const std::string& text);

/// Variable that holds the run's token where the backend passes the environment on.
inline constexpr const char* kTokenVariable = "DEEPSCALE_RUN_TOKEN";

}  // namespace deepscale
