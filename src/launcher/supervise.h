// Starts the ranks of this machine and ends them together: the first failure, or a stop request, takes all others down.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "base/log.h"
#include "platform/process.h"

namespace deepscale {

/// One rank to start.
struct RankLaunch {
  int rank = 0;
  int local_rank = 0;
  ProcessSpec process;
};

struct SupervisorOptions {
  std::string host;                      ///< named in reports
  LogLevel log_level = LogLevel::kInfo;  ///< what the launcher itself prints
  /// Time between the polite signal and SIGKILL. Two thirds belong to the ranks alone, so that they can end their own
  /// helpers; then everything that is left gets SIGTERM.
  std::chrono::milliseconds grace{1200};
};

/// Runs the ranks to their end and returns the run's exit code: 0, the shell code of the first rank that failed, or
/// 128 + signal after a stop request. Prints once which rank failed and the last lines of its standard error.
/// Nothing that the ranks started is alive on return. Throws IoError when a rank cannot be started (the others are
/// gone).
int supervise_ranks(const std::vector<RankLaunch>& ranks, const SupervisorOptions& options);

}  // namespace deepscale
