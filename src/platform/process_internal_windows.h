// Pieces of ProcessTree and run_and_read on Windows. Not for use outside src/platform.
#pragma once

#include <atomic>
#include <functional>
#include <string_view>
#include <thread>

#include "platform/process.h"
#include "platform/text_windows.h"

namespace deepscale {

/// Exit code of what we end by force: as a shell on Linux shows a process killed by signal 9.
inline constexpr DWORD kKilledExitCode = 128 + 9;

/// Signal numbers in events, as the C standard library of Windows has them.
inline constexpr int kInterruptSignal = 2;
inline constexpr int kTerminateSignal = 15;

ExitStatus exit_status_of(DWORD exit_code);

/// A job object whose processes the system ends when its last handle is closed: ours, also when we are killed.
Handle make_kill_on_close_job();

/// Ends all processes of the job and waits until they are gone, at most `limit`.
void kill_job(HANDLE job, std::chrono::milliseconds limit);
/// Whether a process of the job runs. The hosts of consoles do not count.
bool has_processes(HANDLE job);

/// Where a started process sends its output; null: where ours goes. The handles need not be inheritable.
struct OutputHandles {
  HANDLE output = nullptr;
  HANDLE error = nullptr;
};

struct StartedProcess {
  Handle process;
  DWORD id = 0;
};

/// Starts a process inside the job, as the leader of a process group of its own (only groups can be sent Ctrl-Break).
/// It inherits its three standard handles and nothing else. Throws IoError naming the program and the reason.
StartedProcess spawn_process(const ProcessSpec& spec, const OutputHandles& outputs, HANDLE job);

/// Opens a file for appending, as a standard handle of several processes. Throws IoError.
Handle open_log_file(const std::string& path);

/// The way of a child's standard error to us: a pipe, and a thread that gives what comes to `sink`. When the sink
/// returns false, the pipe is closed, as if its reader had ended.
class CapturedStream {
 public:
  using Sink = std::function<bool(std::string_view)>;

  /// Throws IoError.
  explicit CapturedStream(Sink sink);
  /// Does not wait for writers; what they have not written yet is lost.
  ~CapturedStream();
  CapturedStream(const CapturedStream&) = delete;
  CapturedStream& operator=(const CapturedStream&) = delete;

  [[nodiscard]] HANDLE writer() const { return writer_.get(); }
  /// Starts reading; the writers are other processes from here on.
  void close_writer_and_read();
  /// Whether all that has been written was given to the sink.
  [[nodiscard]] bool settled() const;

 private:
  void read_to_end();

  Sink sink_;
  Handle reader_;
  Handle writer_;
  Handle came_;  // set when a read has ended
  Handle stop_;
  OVERLAPPED read_ = {};
  std::atomic<bool> waiting_ = false;  // a read is under way
  std::atomic<bool> ended_ = false;
  std::atomic<HANDLE> reading_thread_ = nullptr;
  std::thread thread_;
};

/// Delivers stop requests to a callback, on a thread of the system: console events (Ctrl-C, Ctrl-Break, a closed
/// window) and requests by ask_to_stop of another process of this user. One at a time in a program.
class StopRequests {
 public:
  /// Arguments: signal number, and whether the console has told the other processes too.
  using Callback = std::function<void(int signal, bool from_terminal)>;

  explicit StopRequests(Callback callback);
  ~StopRequests();
  StopRequests(const StopRequests&) = delete;
  StopRequests& operator=(const StopRequests&) = delete;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Asks a process started by spawn_process to stop: through its StopRequests if it has them, else by Ctrl-Break to its
/// group. False when there is no way to ask: no console in common.
bool ask_to_stop(DWORD process, StopSignal signal);

}  // namespace deepscale
