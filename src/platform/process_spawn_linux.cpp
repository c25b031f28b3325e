#include <fcntl.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>

#include "base/error.h"
#include "platform/machine.h"
#include "platform/process_internal_linux.h"
#include "platform/topology.h"

namespace deepscale {
namespace {

std::vector<char*> pointers_to(const std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  pointers.reserve(strings.size() + 1);
  for (const std::string& text : strings) pointers.push_back(const_cast<char*>(text.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

/// What the child needs after fork, prepared before it: the child may call async-signal-safe functions only.
struct ChildPlan {
  std::string program;
  std::vector<char*> arguments;
  std::vector<char*> environment;
  std::vector<unsigned long> cpu_mask;  // cpu_set_t ends at 1024 CPUs
  bool own_group = false;
  std::optional<int> memory_node;
  OutputDescriptors descriptors;
  int input = -1;
  int report_pipe = -1;
  pid_t parent = 0;
};

[[noreturn]] void run_child(const ChildPlan& plan) {
  die_with_parent(SIGKILL, plan.parent);
  for (const int signal : {SIGINT, SIGTERM, SIGQUIT, SIGPIPE, SIGCHLD}) std::signal(signal, SIG_DFL);
  if (plan.own_group) setpgid(0, 0);
  if (plan.memory_node) bind_memory(*plan.memory_node);  // one system call; without NUMA there is nothing to bind to
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  const bool ready =
      (plan.input < 0 || dup2(plan.input, STDIN_FILENO) >= 0) &&
      (plan.descriptors.output < 0 || dup2(plan.descriptors.output, STDOUT_FILENO) >= 0) &&
      (plan.descriptors.error < 0 || dup2(plan.descriptors.error, STDERR_FILENO) >= 0) &&
      (plan.cpu_mask.empty() || sched_setaffinity(0, plan.cpu_mask.size() * sizeof(unsigned long),
                                                  reinterpret_cast<const cpu_set_t*>(plan.cpu_mask.data())) == 0);
  if (ready) execve(plan.program.c_str(), plan.arguments.data(), plan.environment.data());
  const int reason = errno;
  [[maybe_unused]] const ssize_t written = write(plan.report_pipe, &reason, sizeof(reason));
  _exit(127);
}

/// (process, parent) of every process that is not a zombie, from /proc.
std::vector<std::pair<pid_t, pid_t>> process_parents() {
  std::vector<std::pair<pid_t, pid_t>> parents;
  std::error_code error;
  std::filesystem::directory_iterator entry("/proc", error);
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    std::ifstream file(entry->path() / "stat");
    std::string line;
    if (!std::getline(file, line)) continue;
    // "pid (name, which may contain anything) state parent ..."
    const size_t after_name = line.rfind(')');
    if (after_name == std::string::npos || after_name + 4 > line.size()) continue;
    if (line[after_name + 2] == 'Z' || line[after_name + 2] == 'X') continue;
    parents.emplace_back(std::stoi(name), std::atoi(line.c_str() + after_name + 4));
  }
  return parents;
}

}  // namespace

ProcessId current_process() {
  return getpid();
}

sigset_t stop_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGINT, SIGTERM, SIGQUIT}) sigaddset(&set, signal);
  struct sigaction action = {};
  if (sigaction(SIGHUP, nullptr, &action) == 0 && action.sa_handler != SIG_IGN) sigaddset(&set, SIGHUP);
  return set;
}

int signal_number(StopSignal signal) {
  switch (signal) {
    case StopSignal::kInterrupt:
      return SIGINT;
    case StopSignal::kTerminate:
      return SIGTERM;
    case StopSignal::kKill:
      break;
  }
  return SIGKILL;
}

void adopt_orphans() {
  prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
}

void die_with_parent(int signal, pid_t parent) {
  prctl(PR_SET_PDEATHSIG, signal, 0, 0, 0);
  if (getppid() != parent) _exit(128 + signal);  // it died before prctl took effect
}

std::vector<pid_t> living_descendants() {
  std::unordered_multimap<pid_t, pid_t> children;
  for (const auto& [process, parent] : process_parents()) children.emplace(parent, process);
  std::vector<pid_t> found = {getpid()};
  std::unordered_set<pid_t> seen = {getpid()};
  for (size_t next = 0; next < found.size(); ++next) {
    const auto [begin, end] = children.equal_range(found[next]);
    for (auto child = begin; child != end; ++child) {
      if (seen.insert(child->second).second) found.push_back(child->second);
    }
  }
  found.erase(found.begin());
  return found;
}

void kill_descendants(int limit_ms) {
  constexpr int kPauseMs = 5;
  for (int waited_ms = 0; waited_ms <= limit_ms; waited_ms += kPauseMs) {
    const std::vector<pid_t> left = living_descendants();
    for (const pid_t process : left) kill(process, SIGKILL);
    while (waitpid(-1, nullptr, WNOHANG) > 0) {
    }
    if (left.empty()) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(kPauseMs));
  }
}

ExitStatus exit_status_of(int wait_status) {
  ExitStatus status;
  if (WIFSIGNALED(wait_status)) {
    status.signal = WTERMSIG(wait_status);
  } else {
    status.code = WEXITSTATUS(wait_status);
  }
  return status;
}

std::string ExitStatus::describe() const {
  if (signal != 0) return fmt::format("killed by signal {} ({})", signal, strsignal(signal));
  return fmt::format("exit code {}", code);
}

int pipe_with(const std::string& text) {
  // A pipe takes this much without a reader.
  DS_CHECK_AS(IoError, text.size() <= 4096, "the input of a process may have 4096 bytes, not {}", text.size());
  int ends[2];
  DS_CHECK_AS(IoError, pipe2(ends, O_CLOEXEC) == 0, "cannot make a pipe: {}", std::strerror(errno));
  const ssize_t written = write(ends[1], text.data(), text.size());
  close(ends[1]);
  if (written == static_cast<ssize_t>(text.size())) return ends[0];
  close(ends[0]);
  ds_throw<IoError>("cannot write into a pipe");
}

pid_t spawn_process(const ProcessSpec& spec, const OutputDescriptors& descriptors) {
  DS_CHECK_AS(IoError, !spec.arguments.empty(), "cannot start a process without a program name");
  const auto program = find_program(spec.arguments[0]);
  DS_CHECK_AS(IoError, program.has_value(), "cannot start \"{}\": there is no such executable file{}",
              spec.arguments[0], spec.arguments[0].find('/') == std::string::npos ? " in PATH" : "");
  ChildPlan plan;
  plan.program = program->string();
  plan.arguments = pointers_to(spec.arguments);
  plan.environment = pointers_to(spec.environment);
  plan.descriptors = descriptors;
  plan.parent = getpid();
  plan.own_group = spec.own_group;
  plan.memory_node = spec.memory_node;
  if (!spec.cpus.empty()) plan.cpu_mask = cpu_bit_mask(spec.cpus);

  int report[2];
  DS_CHECK_AS(IoError, pipe2(report, O_CLOEXEC) == 0, "cannot make a pipe: {}", std::strerror(errno));
  plan.report_pipe = report[1];
  plan.input = spec.input.empty() ? -1 : pipe_with(spec.input);
  const pid_t child = fork();
  if (child == 0) run_child(plan);
  const int fork_error = errno;
  close(report[1]);
  if (plan.input >= 0) close(plan.input);
  // Ends at once: exec closes the pipe, a failure writes the reason first.
  int reason = 0;
  ssize_t got = 0;
  if (child > 0) {
    do got = read(report[0], &reason, sizeof(reason));
    while (got < 0 && errno == EINTR);
  }
  close(report[0]);
  DS_CHECK_AS(IoError, child > 0, "cannot start \"{}\": {}", spec.arguments[0], std::strerror(fork_error));
  if (got == sizeof(reason)) {
    waitpid(child, nullptr, 0);
    ds_throw<IoError>("cannot start \"{}\": {}", plan.program, std::strerror(reason));
  }
  return child;
}

ProcessOutput run_and_read(const ProcessSpec& spec, const std::string& error_file) {
  int ends[2];
  DS_CHECK_AS(IoError, pipe2(ends, O_CLOEXEC) == 0, "cannot make a pipe: {}", std::strerror(errno));
  const int error = error_file.empty() ? -1 : open(error_file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  const auto close_ours = [&] {
    close(ends[1]);
    if (error >= 0) close(error);
  };
  pid_t process = -1;
  try {
    process = spawn_process(spec, {ends[1], error});
  } catch (...) {
    close_ours();
    close(ends[0]);
    throw;
  }
  close_ours();
  ProcessOutput result;
  char buffer[4096];
  for (ssize_t got = 1; got != 0;) {
    got = read(ends[0], buffer, sizeof(buffer));
    if (got > 0) result.output.append(buffer, static_cast<size_t>(got));
    if (got < 0 && errno != EINTR) break;
  }
  close(ends[0]);
  int wait_status = 0;
  while (waitpid(process, &wait_status, 0) < 0 && errno == EINTR) {
  }
  result.status = exit_status_of(wait_status);
  return result;
}

}  // namespace deepscale
