// The outer process of [Note: nothing survives] (process_linux.cpp): it starts the supervisor as its child and waits.
// Killed, it takes the supervisor with it (parent-death SIGTERM, on which the supervisor stops its run in good order).
// If the supervisor is killed, its children die with it and everything below them becomes ours and is killed here.
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/error.h"
#include "platform/process.h"
#include "platform/process_internal_linux.h"

namespace deepscale {

ExitStatus run_guarded(const std::function<int()>& body) {
  constexpr int kKillLimitMs = 10'000;
  adopt_orphans();
  for (const int signal : {SIGINT, SIGTERM, SIGQUIT, SIGCHLD}) std::signal(signal, SIG_DFL);
  sigset_t set = stop_signals();
  sigaddset(&set, SIGCHLD);
  sigset_t before;
  // Blocked before the fork: a stop request between here and the child's ProcessTree stays pending and is not lost.
  sigprocmask(SIG_BLOCK, &set, &before);
  std::fflush(nullptr);
  const pid_t guard = getpid();
  const pid_t supervisor = fork();
  DS_CHECK_AS(IoError, supervisor >= 0, "cannot start the supervising process: {}", std::strerror(errno));
  if (supervisor == 0) {
    die_with_parent(SIGTERM, guard);
    const int code = body();
    std::fflush(nullptr);
    _exit(code);
  }
  for (;;) {
    int signal = 0;
    sigwait(&set, &signal);
    if (signal != SIGCHLD) {
      kill(supervisor, signal);
      continue;
    }
    int wait_status = 0;
    for (pid_t ended = waitpid(-1, &wait_status, WNOHANG); ended > 0; ended = waitpid(-1, &wait_status, WNOHANG)) {
      if (ended != supervisor) continue;
      const ExitStatus status = exit_status_of(wait_status);
      if (status.signal != 0) kill_descendants(kKillLimitMs);
      sigprocmask(SIG_SETMASK, &before, nullptr);
      return status;
    }
  }
}

}  // namespace deepscale
