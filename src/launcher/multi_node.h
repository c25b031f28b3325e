// The launcher's side of a run over several machines: starts the agents, waits until all have answered, watches them
// and ends them together.
#pragma once

#include <optional>
#include <string>

#include "launcher/agent_plan.h"
#include "launcher/launch_plan.h"
#include "launcher/supervise.h"

namespace deepscale {

struct MultiNodeOptions {
  std::chrono::seconds start_timeout{120};  ///< for all machines to answer
  std::chrono::seconds peer_timeout{10};    ///< a machine that does not answer for so long is gone
};

/// Reads DEEPSCALE_START_TIMEOUT_S and DEEPSCALE_HOST_TIMEOUT_S. Throws ConfigError.
MultiNodeOptions multi_node_options();

/// How a run over several machines ended.
struct MultiNodeOutcome {
  int code = 0;
  bool failed = false;    ///< a rank or a machine failed; false after a stop request and a good end
  std::vector<int> lost;  ///< indices of hosts that could not be reached or were lost
  bool started = false;   ///< the ranks had been told to go
  int stop_signal = 0;    ///< somebody asked for an end, perhaps after the failure
};

/// Runs the job once. Failures have been reported on standard error on return, and nothing of the run is alive on
/// machines that can be reached. Throws ConfigError or IoError when nothing could be started, for instance because the
/// backend's program is not installed.
MultiNodeOutcome run_multi_node(const LauncherOptions& options, const LaunchPlan& plan, const MachineFacts& facts,
                                const std::string& python, int restart_count, const MultiNodeOptions& timing);

}  // namespace deepscale
