// [Note: nothing survives]
// - Every started process asks the kernel to be killed when its parent dies (PR_SET_PDEATHSIG), so ranks go even when
//   the launcher is killed with SIGKILL.
// - Processes that the ranks themselves start are reached through the tree: a subreaper inherits orphans, so whatever a
//   descendant does (a new session, a double fork) it stays below us in /proc, and killing what is found there until
//   nothing is found ends everything. Process groups would not do: children can leave them.
// - Ranks deliberately stay in the launcher's process group: the terminal's Ctrl-C, a debugger on the terminal and a
//   caller that kills the whole group work as for a single program.
// - run_guarded (process_guard_linux.cpp) covers the death of the supervising process itself.
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <deque>
#include <map>

#include "base/error.h"
#include "platform/line_tail.h"
#include "platform/process.h"
#include "platform/process_internal_linux.h"

namespace deepscale {
namespace {

using Clock = std::chrono::steady_clock;

/// Both ends of the way from a child's standard error to us.
struct ErrorChannel {
  int reader = -1;
  int writer = -1;
};

/// A pseudo-terminal when our standard error is a terminal, so that programs see no difference; else a pipe.
ErrorChannel open_error_channel() {
  ErrorChannel channel;
  if (isatty(STDERR_FILENO) != 0) {
    const int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    char name[64];
    if (master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0 && ptsname_r(master, name, sizeof(name)) == 0) {
      channel = {master, open(name, O_RDWR | O_NOCTTY | O_CLOEXEC)};
    }
    if (channel.writer >= 0) {
      termios mode = {};
      if (tcgetattr(STDERR_FILENO, &mode) == 0) {
        mode.c_oflag &= ~static_cast<tcflag_t>(OPOST);  // the real terminal does the output processing, once
        mode.c_lflag &= ~static_cast<tcflag_t>(ECHO);
        tcsetattr(channel.writer, TCSANOW, &mode);
      }
      winsize size = {};
      if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0) ioctl(master, TIOCSWINSZ, &size);
    } else if (master >= 0) {
      close(master);
      channel = {};
    }
  }
  if (channel.writer < 0) {
    int ends[2];
    DS_CHECK_AS(IoError, pipe2(ends, O_CLOEXEC) == 0, "cannot make a pipe: {}", std::strerror(errno));
    channel = {ends[0], ends[1]};
  }
  fcntl(channel.reader, F_SETFL, O_NONBLOCK);
  return channel;
}

struct Child {
  bool running = true;
  std::string output_file;
  int error_reader = -1;
  LineTail tail{kErrorTailLines};
};

}  // namespace

struct ProcessTree::Impl {
  int signals = -1;
  std::map<ProcessId, Child> children;
  std::deque<ProcessEvent> events;
  std::string unwritten;  // captured bytes that our standard error has not taken yet
  bool error_closed = false;

  void read_signals();
  void collect_children();
  void resize_terminals() const;
  void read_captured(Child& child);
  void write_captured();
  void poll_once(int timeout_ms);
};

ProcessTree::ProcessTree() : impl_(std::make_unique<Impl>()) {
  adopt_orphans();
  std::signal(SIGPIPE, SIG_IGN);  // a closed standard error must not kill the supervisor
  sigset_t set = stop_signals();
  // A shell starts background jobs with SIGINT ignored; a stop request must reach us all the same.
  for (const int signal : {SIGINT, SIGTERM, SIGQUIT, SIGCHLD}) std::signal(signal, SIG_DFL);
  sigaddset(&set, SIGCHLD);
  sigaddset(&set, SIGWINCH);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  impl_->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  DS_CHECK_AS(IoError, impl_->signals >= 0, "signalfd: {}", std::strerror(errno));
}

ProcessTree::~ProcessTree() {
  constexpr int kLimitMs = 10'000;
  kill_descendants(kLimitMs);
  for (auto& [process, child] : impl_->children) {
    if (child.error_reader >= 0) close(child.error_reader);
  }
  close(impl_->signals);
}

ProcessId ProcessTree::start(const ProcessSpec& spec) {
  Child child;
  ErrorChannel channel;
  OutputDescriptors descriptors;
  if (!spec.output_file.empty()) {
    const int file = open(spec.output_file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    DS_CHECK_AS(IoError, file >= 0, "cannot write the log file {}: {}", spec.output_file, std::strerror(errno));
    descriptors = {file, file};
    child.output_file = spec.output_file;
  } else if (spec.keep_error_tail) {
    channel = open_error_channel();
    descriptors.error = channel.writer;
    child.error_reader = channel.reader;
  }
  const auto close_ours = [&] {
    if (descriptors.error >= 0) close(descriptors.error);  // the same descriptor as output when there is a log file
  };
  pid_t process = -1;
  try {
    process = spawn_process(spec, descriptors);
  } catch (...) {
    close_ours();
    if (child.error_reader >= 0) close(child.error_reader);
    throw;
  }
  close_ours();
  impl_->children.emplace(process, std::move(child));
  return process;
}

void ProcessTree::Impl::collect_children() {
  int wait_status = 0;
  for (pid_t process = waitpid(-1, &wait_status, WNOHANG); process > 0; process = waitpid(-1, &wait_status, WNOHANG)) {
    const auto child = children.find(process);
    if (child == children.end()) continue;  // an adopted orphan
    child->second.running = false;
    ProcessEvent event;
    event.kind = ProcessEvent::Kind::kExited;
    event.process = process;
    event.status = exit_status_of(wait_status);
    events.push_back(event);
  }
}

void ProcessTree::Impl::resize_terminals() const {
  winsize size = {};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0) return;
  for (const auto& [process, child] : children) {
    if (child.error_reader >= 0) ioctl(child.error_reader, TIOCSWINSZ, &size);
  }
}

void ProcessTree::Impl::read_signals() {
  signalfd_siginfo info = {};
  while (read(signals, &info, sizeof(info)) == sizeof(info)) {
    if (info.ssi_signo == SIGCHLD) {
      collect_children();
    } else if (info.ssi_signo == SIGWINCH) {
      resize_terminals();
    } else {
      ProcessEvent event;
      event.kind = ProcessEvent::Kind::kStopRequested;
      event.signal = static_cast<int>(info.ssi_signo);
      event.from_terminal = info.ssi_code == SI_KERNEL;
      events.push_back(event);
    }
  }
}

void ProcessTree::Impl::read_captured(Child& child) {
  std::array<char, 16384> buffer;
  const ssize_t got = read(child.error_reader, buffer.data(), buffer.size());
  if (got > 0) {
    const std::string_view bytes(buffer.data(), static_cast<size_t>(got));
    child.tail.append(bytes);
    if (!error_closed) unwritten.append(bytes);
  } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {  // end of the pipe; EIO is a pseudo-terminal's end
    close(child.error_reader);
    child.error_reader = -1;
  }
}

void ProcessTree::Impl::write_captured() {
  // After POLLOUT a pipe takes PIPE_BUF bytes without blocking; more could make the supervisor wait for a slow reader.
  constexpr size_t kChunk = 4096;
  const ssize_t wrote = write(STDERR_FILENO, unwritten.data(), std::min(unwritten.size(), kChunk));
  if (wrote > 0) {
    unwritten.erase(0, static_cast<size_t>(wrote));
  } else if (wrote < 0 && errno != EINTR && errno != EAGAIN) {
    // Nobody reads our standard error any more: tell the writers so, as a closed pipe would.
    error_closed = true;
    unwritten.clear();
    for (auto& [process, child] : children) {
      if (child.error_reader >= 0) close(child.error_reader);
      child.error_reader = -1;
    }
  }
}

void ProcessTree::Impl::poll_once(int timeout_ms) {
  std::vector<pollfd> polled = {{signals, POLLIN, 0}};
  std::vector<Child*> owners = {nullptr};
  if (!unwritten.empty()) {
    polled.push_back({STDERR_FILENO, POLLOUT, 0});
    owners.push_back(nullptr);
  } else {
    for (auto& [process, child] : children) {
      if (child.error_reader < 0) continue;
      polled.push_back({child.error_reader, POLLIN, 0});
      owners.push_back(&child);
    }
  }
  if (poll(polled.data(), polled.size(), timeout_ms) <= 0) return;
  if (polled[0].revents != 0) read_signals();
  for (size_t i = 1; i < polled.size(); ++i) {
    if (polled[i].revents == 0) continue;
    if (owners[i] != nullptr) {
      read_captured(*owners[i]);
    } else {
      write_captured();
    }
  }
}

ProcessEvent ProcessTree::wait(std::optional<std::chrono::milliseconds> timeout) {
  const Clock::time_point end = Clock::now() + timeout.value_or(std::chrono::milliseconds(0));
  while (impl_->events.empty()) {
    int left_ms = -1;
    if (timeout) {
      left_ms = static_cast<int>(std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now()).count());
      if (left_ms <= 0) return {};
    }
    impl_->poll_once(left_ms);
  }
  const ProcessEvent event = impl_->events.front();
  impl_->events.pop_front();
  return event;
}

void ProcessTree::send(ProcessId process, StopSignal signal) {
  const auto child = impl_->children.find(process);
  // Until it is collected, its number cannot belong to anybody else.
  if (child != impl_->children.end() && child->second.running) {
    kill(static_cast<pid_t>(process), signal_number(signal));
  }
}

void ProcessTree::send_to_descendants(StopSignal signal) {
  for (const pid_t process : living_descendants()) kill(process, signal_number(signal));
}

bool ProcessTree::has_descendants() const {
  return !living_descendants().empty();
}

std::vector<std::string> ProcessTree::error_tail(ProcessId process) const {
  const auto child = impl_->children.find(process);
  if (child == impl_->children.end()) return {};
  if (!child->second.output_file.empty()) return last_lines_of_file(child->second.output_file, kErrorTailLines);
  return child->second.tail.lines();
}

void ProcessTree::flush_captured(std::chrono::milliseconds limit) {
  const Clock::time_point end = Clock::now() + limit;
  const auto pending = [&] {
    if (!impl_->unwritten.empty()) return true;
    for (const auto& [process, child] : impl_->children) {
      pollfd reader = {child.error_reader, POLLIN, 0};
      if (child.error_reader >= 0 && poll(&reader, 1, 0) > 0) return true;
    }
    return false;
  };
  while (pending() && Clock::now() < end) impl_->poll_once(10);
}

}  // namespace deepscale
