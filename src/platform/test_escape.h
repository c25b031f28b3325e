// For tests: a process that tries to outlive the one that started it.
#pragma once

#include <string>
#include <vector>

#ifdef _WIN32
#include <windows.h>
// After windows.h, which it needs.
#include <csignal>

#include "platform/process_internal_windows.h"
#else
#include <unistd.h>

#include <csignal>
#endif

namespace deepscale {

/// Starts a program in a session (Windows: without the console and in a process group) of its own. Arguments hold no
/// blanks or quotes.
inline void start_escapee(const std::vector<std::string>& arguments) {
#ifdef _WIN32
  std::string line;
  for (const std::string& argument : arguments) line += (line.empty() ? "" : " ") + argument;
  STARTUPINFOA startup = {};
  startup.cb = sizeof(startup);
  PROCESS_INFORMATION started = {};
  CreateProcessA(nullptr, line.data(), nullptr, nullptr, FALSE, DETACHED_PROCESS | CREATE_NEW_PROCESS_GROUP, nullptr,
                 nullptr, &startup, &started);
  CloseHandle(started.hThread);
  CloseHandle(started.hProcess);
#else
  if (fork() != 0) return;
  setsid();
  std::vector<char*> pointers;
  for (const std::string& argument : arguments) pointers.push_back(const_cast<char*>(argument.c_str()));
  pointers.push_back(nullptr);
  execv(pointers[0], pointers.data());
  _exit(126);
#endif
}

/// Every request to stop that can be ignored is ignored from here on, or handled.
inline void on_stop_requests(void (*handler)(int)) {
  std::signal(SIGINT, handler);
  std::signal(SIGTERM, handler);
#ifdef _WIN32
  std::signal(SIGBREAK, handler);
  // And what a ProcessTree sends to programs that listen, which needs no console.
  static const StopRequests requests([handler](int signal, bool) {
    if (handler != SIG_IGN) handler(signal);
  });
#else
  std::signal(SIGHUP, handler);
#endif
}

/// Ends the calling process at once, as a crash would. A shell shows 137.
[[noreturn]] inline void kill_oneself() {
#ifdef _WIN32
  TerminateProcess(GetCurrentProcess(), 137);
#else
  kill(getpid(), SIGKILL);
#endif
  for (;;) {
  }
}

}  // namespace deepscale
