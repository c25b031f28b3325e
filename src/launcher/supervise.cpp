#include "launcher/supervise.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <optional>

#include "launcher/message.h"

namespace deepscale {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

struct RunningRank {
  const RankLaunch* launch;
  ProcessId process;
  bool running = true;
};

class Supervisor {
 public:
  Supervisor(const std::vector<RankLaunch>& ranks, const SupervisorOptions& options)
      : launches_(ranks), options_(options), message_(options.log_level) {}

  int run();

 private:
  void start();
  /// Waits until a rank fails, a stop is requested, or all ranks have ended well.
  void watch();
  void handle(const ProcessEvent& event);
  void stop(StopSignal first, bool ranks_have_it);
  /// Handles events until `done` or the deadline.
  template <typename Done>
  void wait_until(Clock::time_point deadline, const Done& done);
  void report_failure();
  size_t running() const;

  const std::vector<RankLaunch>& launches_;
  const SupervisorOptions& options_;
  Message message_;
  ProcessTree tree_;
  std::vector<RunningRank> ranks_;
  Clock::time_point started_ = Clock::now();
  std::optional<RunningRank> failed_;
  ExitStatus failed_status_;
  double failed_after_s_ = 0;
  std::optional<ProcessEvent> stop_request_;
};

size_t Supervisor::running() const {
  return static_cast<size_t>(
      std::count_if(ranks_.begin(), ranks_.end(), [](const RunningRank& rank) { return rank.running; }));
}

void Supervisor::start() {
  for (const RankLaunch& launch : launches_) {
    const ProcessId process = tree_.start(launch.process);
    ranks_.push_back({&launch, process});
    message_.debug("rank {} is process {}: {}", launch.rank, process, fmt::join(launch.process.arguments, " "));
  }
}

void Supervisor::handle(const ProcessEvent& event) {
  if (event.kind == ProcessEvent::Kind::kStopRequested && !stop_request_) stop_request_ = event;
  if (event.kind != ProcessEvent::Kind::kExited) return;
  for (RunningRank& rank : ranks_) {
    if (rank.process != event.process) continue;
    rank.running = false;
    message_.debug("rank {} ended: {}", rank.launch->rank, event.status.describe());
    // What ranks do after they were told to stop is no failure of theirs.
    if (event.status.ok() || failed_ || stop_request_) continue;
    failed_ = rank;
    failed_status_ = event.status;
    failed_after_s_ = std::chrono::duration<double>(Clock::now() - started_).count();
  }
}

void Supervisor::watch() {
  while (running() > 0 && !failed_ && !stop_request_) handle(tree_.wait(std::nullopt));
}

template <typename Done>
void Supervisor::wait_until(Clock::time_point deadline, const Done& done) {
  constexpr milliseconds kStep{10};  // adopted orphans end without an event
  while (!done() && Clock::now() < deadline) handle(tree_.wait(kStep));
}

void Supervisor::stop(StopSignal first, bool ranks_have_it) {
  const Clock::time_point begin = Clock::now();
  for (const RunningRank& rank : ranks_) {
    if (rank.running && !ranks_have_it) tree_.send(rank.process, first);
  }
  wait_until(begin + options_.grace * 2 / 3, [&] { return running() == 0; });
  if (!tree_.has_descendants()) return;
  tree_.send_to_descendants(StopSignal::kTerminate);
  const auto nothing_left = [&] { return !tree_.has_descendants(); };
  wait_until(std::max(begin + options_.grace, Clock::now() + options_.grace / 3), nothing_left);
  constexpr milliseconds kKillLimit{10'000};
  const Clock::time_point give_up = Clock::now() + kKillLimit;
  while (!nothing_left() && Clock::now() < give_up) {
    tree_.send_to_descendants(StopSignal::kKill);
    wait_until(Clock::now() + milliseconds(20), nothing_left);
  }
  if (!nothing_left()) message_.error("some processes of the run cannot be killed; they wait inside the kernel");
}

void Supervisor::report_failure() {
  const RankLaunch& launch = *failed_->launch;
  message_.error("rank {} (local rank {}, process {}) on host {} failed: {}, {:.1f} s after its start", launch.rank,
                 launch.local_rank, failed_->process, options_.host, failed_status_.describe(), failed_after_s_);
  const bool logged = !launch.process.output_file.empty();
  if (!logged && !launch.process.keep_error_tail) return;  // its standard error was ours
  const std::vector<std::string> lines = tree_.error_tail(failed_->process);
  const std::string source = logged ? launch.process.output_file : "its standard error";
  if (lines.empty()) {
    message_.error("it wrote nothing to {}", source);
    return;
  }
  message_.error("last lines of {}:", source);
  for (const std::string& line : lines) fmt::print(stderr, "  [rank {}] {}\n", launch.rank, line);
}

int Supervisor::run() {
  start();
  watch();
  if (failed_ && running() > 0) message_.debug("stopping the other {} ranks", running());
  if (stop_request_) {
    message_.info("stop requested by signal {}; ending {} ranks", stop_request_->signal, running());
    const bool interrupt = stop_request_->signal == SIGINT;
    stop(interrupt ? StopSignal::kInterrupt : StopSignal::kTerminate, interrupt && stop_request_->from_terminal);
  } else {
    stop(StopSignal::kTerminate, /*ranks_have_it=*/false);
  }
  tree_.flush_captured(milliseconds(2000));
  if (failed_) report_failure();
  if (failed_) return failed_status_.shell_code();
  return stop_request_ ? 128 + stop_request_->signal : 0;
}

}  // namespace

int supervise_ranks(const std::vector<RankLaunch>& ranks, const SupervisorOptions& options) {
  return Supervisor(ranks, options).run();
}

}  // namespace deepscale
