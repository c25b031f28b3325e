#include "launcher/supervise.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <optional>

#include "base/environment.h"
#include "base/error.h"
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
  Supervisor(const std::vector<RankLaunch>& ranks, const SupervisorOptions& options, RunLink* link)
      : launches_(ranks), options_(options), link_(link), message_(options.log_level) {}

  RunOutcome run();

 private:
  void start();
  /// Waits until a rank fails, a stop is requested, or all ranks have ended well.
  void watch();
  void handle(const ProcessEvent& event);
  void stop(StopSignal first, bool ranks_have_it);
  /// Handles events until `done` or the deadline.
  template <typename Done>
  void wait_until(Clock::time_point deadline, const Done& done);
  RankFailure describe_failure() const;
  size_t running() const;

  const std::vector<RankLaunch>& launches_;
  const SupervisorOptions& options_;
  RunLink* link_;
  Message message_;
  ProcessTree tree_;
  std::vector<RunningRank> ranks_;
  Clock::time_point started_ = Clock::now();
  std::optional<RunningRank> failed_;
  ExitStatus failed_status_;
  double failed_after_s_ = 0;
  std::optional<ProcessEvent> stop_request_;
  std::optional<StopSignal> link_stop_;
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
    if (event.status.ok() || failed_ || stop_request_ || link_stop_) continue;
    failed_ = rank;
    failed_status_ = event.status;
    failed_after_s_ = std::chrono::duration<double>(Clock::now() - started_).count();
  }
}

void Supervisor::watch() {
  constexpr milliseconds kLinkStep{20};
  while (running() > 0 && !failed_ && !stop_request_ && !link_stop_) {
    handle(tree_.wait(link_ != nullptr ? std::optional(kLinkStep) : std::nullopt));
    if (link_ != nullptr) link_stop_ = link_->poll();
  }
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

RankFailure Supervisor::describe_failure() const {
  const RankLaunch& launch = *failed_->launch;
  RankFailure failure{launch.rank, launch.local_rank, failed_->process, failed_status_, failed_after_s_, {}, {}};
  const std::string& log = launch.process.output_file;
  if (log.empty() && !launch.process.keep_error_tail) return failure;
  failure.source = log.empty() ? "its standard error" : log;
  failure.lines = tree_.error_tail(failed_->process);
  return failure;
}

RunOutcome Supervisor::run() {
  start();
  watch();
  RunOutcome outcome;
  if (failed_ && link_ != nullptr) {
    // The rest of the run should hear of it before this machine's ranks are gone: they may take their time.
    tree_.flush_captured(milliseconds(200));
    link_->rank_failed(describe_failure());
  }
  if (failed_ && running() > 0) message_.debug("stopping the other {} ranks", running());
  if (stop_request_) {
    message_.info("stop requested by signal {}; ending {} ranks", stop_request_->signal, running());
    const bool interrupt = stop_request_->signal == SIGINT;
    stop(interrupt ? StopSignal::kInterrupt : StopSignal::kTerminate, interrupt && stop_request_->from_terminal);
  } else {
    stop(link_stop_.value_or(StopSignal::kTerminate), /*ranks_have_it=*/false);
  }
  tree_.flush_captured(milliseconds(2000));
  if (failed_) outcome.failure = describe_failure();
  if (stop_request_) outcome.stop_signal = stop_request_->signal;
  outcome.stopped_by_link = link_stop_.has_value();
  return outcome;
}

}  // namespace

int RunOutcome::code() const {
  if (failure) return failure->status.shell_code();
  return stop_signal != 0 ? 128 + stop_signal : 0;
}

SupervisorOptions supervisor_options(LogLevel log_level) {
  SupervisorOptions options;
  options.log_level = log_level;
  if (const auto grace_ms = environment_int("DEEPSCALE_KILL_GRACE_MS")) {
    DS_CHECK_AS(ConfigError, *grace_ms >= 0,
                "environment variable DEEPSCALE_KILL_GRACE_MS must be at least 0, found {}", *grace_ms);
    options.grace = milliseconds(*grace_ms);
  }
  return options;
}

RunOutcome supervise_ranks(const std::vector<RankLaunch>& ranks, const SupervisorOptions& options, RunLink* link) {
  return Supervisor(ranks, options, link).run();
}

void report_failure(const RankFailure& failure, const std::string& host, LogLevel log_level) {
  const Message message(log_level);
  message.error("rank {} (local rank {}, process {}) on host {} failed: {}, {:.1f} s after its start", failure.rank,
                failure.local_rank, failure.process, host, failure.status.describe(), failure.after_s);
  if (failure.source.empty()) return;
  if (failure.lines.empty()) {
    message.error("it wrote nothing to {}", failure.source);
    return;
  }
  message.error("last lines of {}:", failure.source);
  for (const std::string& line : failure.lines) fmt::print(stderr, "  [rank {}] {}\n", failure.rank, line);
}

}  // namespace deepscale
