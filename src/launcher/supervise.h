// Starts the ranks of this machine and ends them together: the first failure, or a stop request, takes all others down.
#pragma once

#include <chrono>
#include <optional>
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

/// The first rank of a run that failed.
struct RankFailure {
  int rank = 0;
  int local_rank = 0;
  ProcessId process = 0;
  ExitStatus status;
  double after_s = 0;              ///< time it had run
  std::string source;              ///< where `lines` come from; empty: its standard error was the launcher's own
  std::vector<std::string> lines;  ///< the last ones
};

/// How the ranks of this machine ended.
struct RunOutcome {
  std::optional<RankFailure> failure;
  int stop_signal = 0;           ///< a signal asked this process to stop
  bool stopped_by_link = false;  ///< the link did

  /// 0, the shell code of the first rank that failed, or 128 + signal.
  int code() const;
};

/// A run over several machines: what the ranks' supervisor hears from and tells the rest of the run.
class RunLink {
 public:
  virtual ~RunLink() = default;
  /// Whether the run is to stop here. Called every few milliseconds; must not wait.
  virtual std::optional<StopSignal> poll() = 0;
  /// Called once, as soon as the failure is known; the other ranks of this machine are still running.
  virtual void rank_failed(const RankFailure& failure) = 0;
};

struct SupervisorOptions {
  LogLevel log_level = LogLevel::kInfo;  ///< what the launcher itself prints
  /// Time between the polite signal and SIGKILL. Two thirds belong to the ranks alone, so that they can end their own
  /// helpers; then everything that is left gets SIGTERM.
  std::chrono::milliseconds grace{1200};
};

/// Reads DEEPSCALE_KILL_GRACE_MS. Throws ConfigError.
SupervisorOptions supervisor_options(LogLevel log_level);

/// Runs the ranks to their end. Nothing that the ranks started is alive on return.
/// Throws IoError when a rank cannot be started (the others are gone).
RunOutcome supervise_ranks(const std::vector<RankLaunch>& ranks, const SupervisorOptions& options,
                           RunLink* link = nullptr);

/// Prints the failure on standard error: rank, host, how it ended and its last lines.
void report_failure(const RankFailure& failure, const std::string& host, LogLevel log_level);

}  // namespace deepscale
