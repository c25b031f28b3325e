// [Note: nothing survives on Windows]
// - All processes of a tree live in one job object, from their first moment on, and so does whatever they start: a job
//   cannot be left. The system ends them when the last handle to the job is closed, and only this process has one, so
//   they go whatever way this process ends. Jobs nest: a launcher may be started by another one.
// - So run_guarded needs no second process.
// - Windows has no signals. Started processes lead process groups, which can be sent Ctrl-Break; one that has a
//   ProcessTree itself is asked through an event (process_stop_windows.cpp). kKill ends a process without asking.
#include <algorithm>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>

#include "base/error.h"
#include "platform/line_tail.h"
#include "platform/process_internal_windows.h"

namespace deepscale {
namespace {

using Clock = std::chrono::steady_clock;

/// Our standard error, to which threads pass on what children wrote.
class StandardError {
 public:
  /// False when nobody reads it any more.
  bool write(std::string_view bytes) {
    const std::lock_guard lock(mutex_);
    while (!closed_ && !bytes.empty()) {
      DWORD wrote = 0;
      closed_ =
          !WriteFile(GetStdHandle(STD_ERROR_HANDLE), bytes.data(), static_cast<DWORD>(bytes.size()), &wrote, nullptr);
      bytes.remove_prefix(std::min<size_t>(wrote, bytes.size()));
    }
    return !closed_;
  }

 private:
  std::mutex mutex_;
  bool closed_ = false;
};

struct Tail {
  std::mutex mutex;
  LineTail lines{kErrorTailLines};
};

struct Child {
  StartedProcess started;
  bool running = true;
  std::string output_file;
  std::unique_ptr<Tail> tail;
  std::unique_ptr<CapturedStream> captured;
  HANDLE registration = nullptr;
};

}  // namespace

struct ProcessTree::Impl {
  /// What the callback of a process's end is given.
  struct Watch {
    Impl* owner = nullptr;
    DWORD id = 0;
    HANDLE process = nullptr;
  };

  Handle job = make_kill_on_close_job();
  StandardError standard_error;
  std::map<ProcessId, Child> children;  // by the owner's thread alone
  std::map<ProcessId, std::unique_ptr<Watch>> watches;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<ProcessEvent> events;         // guarded by mutex
  std::unique_ptr<StopRequests> requests;  // last, so that its callback finds the rest

  void push(const ProcessEvent& event) {
    const std::lock_guard lock(mutex);
    events.push_back(event);
    changed.notify_all();
  }

  static void CALLBACK on_exit(void* context, BOOLEAN /*timed_out*/) {
    const auto* const watch = static_cast<const Watch*>(context);
    DWORD code = 0;
    GetExitCodeProcess(watch->process, &code);
    ProcessEvent event;
    event.kind = ProcessEvent::Kind::kExited;
    event.process = watch->id;
    event.status = exit_status_of(code);
    watch->owner->push(event);
  }

  void watch(Child& child) {
    auto watch = std::make_unique<Watch>(Watch{this, child.started.id, child.started.process.get()});
    DS_CHECK_AS(IoError,
                RegisterWaitForSingleObject(&child.registration, watch->process, &Impl::on_exit, watch.get(), INFINITE,
                                            WT_EXECUTEONLYONCE),
                "cannot wait for a process: {}", error_text());
    watches[child.started.id] = std::move(watch);
  }
};

ProcessTree::ProcessTree() : impl_(std::make_unique<Impl>()) {
  impl_->requests = std::make_unique<StopRequests>([impl = impl_.get()](int signal, bool from_terminal) {
    ProcessEvent event;
    event.kind = ProcessEvent::Kind::kStopRequested;
    event.signal = signal;
    event.from_terminal = from_terminal;
    impl->push(event);
  });
}

ProcessTree::~ProcessTree() {
  constexpr std::chrono::seconds kLimit{10};
  kill_job(impl_->job.get(), kLimit);
  impl_->requests.reset();
  for (auto& [process, child] : impl_->children) {
    if (child.registration != nullptr) UnregisterWaitEx(child.registration, INVALID_HANDLE_VALUE);
  }
}

ProcessId ProcessTree::start(const ProcessSpec& spec) {
  Child child;
  OutputHandles outputs;
  Handle file;
  if (!spec.output_file.empty()) {
    file = open_log_file(spec.output_file);
    outputs = {file.get(), file.get()};
    child.output_file = spec.output_file;
  } else if (spec.keep_error_tail) {
    child.tail = std::make_unique<Tail>();
    child.captured =
        std::make_unique<CapturedStream>([impl = impl_.get(), tail = child.tail.get()](std::string_view bytes) {
          {
            const std::lock_guard lock(tail->mutex);
            tail->lines.append(bytes);
          }
          return impl->standard_error.write(bytes);
        });
    outputs.error = child.captured->writer();
  }
  child.started = spawn_process(spec, outputs, impl_->job.get());
  if (child.captured != nullptr) child.captured->close_writer_and_read();
  const ProcessId process = child.started.id;
  // Its number is free for others only when the handle that we hold is closed, so no two children have the same.
  Child& kept = impl_->children.emplace(process, std::move(child)).first->second;
  impl_->watch(kept);
  return process;
}

ProcessEvent ProcessTree::wait(std::optional<std::chrono::milliseconds> timeout) {
  ProcessEvent event;
  {
    std::unique_lock lock(impl_->mutex);
    const auto any = [this] { return !impl_->events.empty(); };
    if (!timeout) {
      impl_->changed.wait(lock, any);
    } else if (!impl_->changed.wait_until(lock, Clock::now() + *timeout, any)) {
      return {};
    }
    event = impl_->events.front();
    impl_->events.pop_front();
  }
  const auto child = impl_->children.find(event.process);
  if (event.kind == ProcessEvent::Kind::kExited && child != impl_->children.end()) child->second.running = false;
  return event;
}

void ProcessTree::send(ProcessId process, StopSignal signal) {
  const auto child = impl_->children.find(process);
  if (child == impl_->children.end() || !child->second.running) return;
  if (signal != StopSignal::kKill && ask_to_stop(child->second.started.id, signal)) return;
  // Who cannot be asked ends as a program on Linux that takes no notice of signals does.
  const int number = signal == StopSignal::kInterrupt   ? kInterruptSignal
                     : signal == StopSignal::kTerminate ? kTerminateSignal
                                                        : static_cast<int>(kKilledExitCode) - 128;
  TerminateProcess(child->second.started.process.get(), static_cast<UINT>(128 + number));
}

void ProcessTree::send_to_descendants(StopSignal signal) {
  if (signal == StopSignal::kKill) {
    TerminateJobObject(impl_->job.get(), kKilledExitCode);
    return;
  }
  // Groups reach what the started processes have started in turn.
  for (const auto& [process, child] : impl_->children) send(process, signal);
}

bool ProcessTree::has_descendants() const {
  return has_processes(impl_->job.get());
}

std::vector<std::string> ProcessTree::error_tail(ProcessId process) const {
  const auto child = impl_->children.find(process);
  if (child == impl_->children.end()) return {};
  if (!child->second.output_file.empty()) return last_lines_of_file(child->second.output_file, kErrorTailLines);
  if (child->second.tail == nullptr) return {};
  const std::lock_guard lock(child->second.tail->mutex);
  return child->second.tail->lines.lines();
}

void ProcessTree::flush_captured(std::chrono::milliseconds limit) {
  const Clock::time_point end = Clock::now() + limit;
  const auto settled = [&] {
    return std::all_of(impl_->children.begin(), impl_->children.end(), [](const auto& entry) {
      return entry.second.captured == nullptr || entry.second.captured->settled();
    });
  };
  while (!settled() && Clock::now() < end) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

}  // namespace deepscale
