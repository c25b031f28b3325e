// Pieces that ProcessTree and run_guarded share on Linux. Not for use outside src/platform.
#pragma once

#include <sys/types.h>

#include <csignal>
#include <span>
#include <string>
#include <vector>

#include "platform/process.h"

namespace deepscale {

/// Signals that ask a run to stop. SIGHUP is left out when the program was started with it ignored (nohup).
sigset_t stop_signals();

/// The system's number for a stop signal.
int signal_number(StopSignal signal);

/// Makes orphaned descendants children of this process instead of init's.
void adopt_orphans();

/// In a freshly forked process: die by `signal` when `parent` dies, also when it has died already.
void die_with_parent(int signal, pid_t parent);

/// All living descendants of this process (children, their children, ...), zombies left out.
std::vector<pid_t> living_descendants();

/// Kills descendants, also those that appear meanwhile, and collects them, until none is left or `limit_ms` is over
/// (a process in an uninterruptible system call cannot be killed). Collected children are lost to waitpid.
void kill_descendants(int limit_ms);

ExitStatus exit_status_of(int wait_status);

/// Where a started process sends its output; -1 leaves the parent's descriptor.
struct OutputDescriptors {
  int output = -1;
  int error = -1;
};

/// CPUs as the kernel's bit mask, of any length: cpu_set_t ends at 1024 CPUs.
std::vector<unsigned long> cpu_bit_mask(std::span<const int> cpus);

/// A pipe that holds the text and ends after it. The caller closes it.
int pipe_with(const std::string& text);

/// Forks and executes. The child dies by SIGKILL with its parent and has default signal handling.
/// Throws IoError naming the program and the reason.
pid_t spawn_process(const ProcessSpec& spec, const OutputDescriptors& descriptors);

}  // namespace deepscale
