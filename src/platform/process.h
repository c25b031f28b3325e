// Child processes that cannot outlive the run. On Linux this is built from parent-death signals, a subreaper and a walk
// over the descendants; on Windows a kill-on-close job object does the same ([Note: nothing survives] in
// process_linux.cpp). A ProcessTree is used by one thread; a program has at most one, because it collects the program's
// signals.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace deepscale {

using ProcessId = int64_t;

/// The calling process.
ProcessId current_process();

/// How a process ended: by exit code, or by a signal (then `code` is 0).
struct ExitStatus {
  int code = 0;
  int signal = 0;

  bool ok() const { return code == 0 && signal == 0; }
  /// What a shell shows: the code, or 128 + signal.
  int shell_code() const { return signal != 0 ? 128 + signal : code; }
  /// "exit code 3", "killed by signal 9 (Killed)".
  std::string describe() const;
};

struct ProcessSpec {
  std::vector<std::string> arguments;    ///< arguments[0] is the program; without '/' it is searched in PATH
  std::vector<std::string> environment;  ///< complete, each "NAME=value"
  std::vector<int> cpus;                 ///< logical CPUs it may run on; empty: as the parent
  std::optional<int> memory_node;        ///< its memory comes from this NUMA node; nothing: as the parent's
  std::string output_file;               ///< standard output and error are appended here; empty: as the parent
  std::string input;                     ///< its standard input, at most 4096 bytes; empty: as the parent's
  bool keep_error_tail = false;          ///< pass standard error through and keep its last lines for error_tail()
  bool own_group = false;                ///< the terminal's signals do not reach it; it cannot read the terminal
};

enum class StopSignal : uint8_t { kInterrupt, kTerminate, kKill };

struct ProcessEvent {
  enum class Kind : uint8_t {
    kExited,         ///< a process started here ended; `process`, `status`
    kStopRequested,  ///< SIGINT, SIGTERM, SIGHUP or SIGQUIT came (Windows: console events); `signal`, `from_terminal`
    kTimeout,        ///< nothing happened in time
  };
  Kind kind = Kind::kTimeout;
  ProcessId process = 0;
  ExitStatus status;
  int signal = 0;
  bool from_terminal = false;  ///< the terminal sent it, so every process of the foreground group has it already
};

/// Lines of standard error that error_tail() keeps per process.
inline constexpr int kErrorTailLines = 30;

class ProcessTree {
 public:
  /// From here on the program's stop signals arrive only through wait(), and orphaned descendants become its children.
  ProcessTree();
  /// Kills every descendant that is left.
  ~ProcessTree();
  ProcessTree(const ProcessTree&) = delete;
  ProcessTree& operator=(const ProcessTree&) = delete;

  /// Starts a process that the kernel kills when this program dies.
  /// Throws IoError naming the program (or the log file) and the system's reason when it cannot be started.
  ProcessId start(const ProcessSpec& spec);

  /// Waits for the next event; without a timeout as long as it takes. Passes captured standard error through meanwhile.
  ProcessEvent wait(std::optional<std::chrono::milliseconds> timeout);

  /// Signals one started process. Does nothing when it has ended already.
  void send(ProcessId process, StopSignal signal);
  /// Signals every descendant, also those that started processes left behind or that moved to other sessions.
  void send_to_descendants(StopSignal signal);
  bool has_descendants() const;

  /// The last lines (at most kErrorTailLines) of a process started with keep_error_tail, or of its output_file.
  std::vector<std::string> error_tail(ProcessId process) const;
  /// Passes on what captured processes wrote before they ended. Waits at most `limit` for a slow reader.
  void flush_captured(std::chrono::milliseconds limit);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// What a short helper program wrote to standard output (text: line ends are "\n"), and how it ended. Its standard
/// error goes to `error_file`, or to the parent's when that is empty.
struct ProcessOutput {
  ExitStatus status;
  std::string output;
};

/// Runs a process to its end and reads its standard output. Throws IoError as ProcessTree::start.
/// Requires: no ProcessTree exists.
ProcessOutput run_and_read(const ProcessSpec& spec, const std::string& error_file = "");

/// Runs `body` (which may use one ProcessTree) so that its processes die even when a process of the run is killed with
/// SIGKILL: two processes guard each other, and each takes the whole tree down when the other one dies.
/// Stop signals sent to the caller reach the body's ProcessTree. Returns body's result as the code, or the signal that
/// killed the inner process. The body runs in a forked process on Linux: what it changes in memory is not seen here.
/// On Windows the job object of the body's ProcessTree is enough, and the body runs in this process.
/// Requires: no other threads. Throws IoError when no process can be made.
ExitStatus run_guarded(const std::function<int()>& body);

}  // namespace deepscale
