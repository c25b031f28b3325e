// What holds on Linux alone: signals, sessions, orphans, and the pair of processes behind run_guarded. The counterpart
// is process_windows_test.cpp.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <thread>

#include "platform/process.h"
#include "platform/resources.h"
#include "platform/test_children.h"

namespace deepscale {
namespace {

using std::chrono::milliseconds;

ProcessSpec shell(const std::string& script) {
  ProcessSpec spec;
  spec.arguments = {"sh", "-c", script};
  for (const auto& [name, value] : environment_variables()) spec.environment.push_back(name + "=" + value);
  return spec;
}

/// Runs `body` in a forked process, because a ProcessTree takes over the program's signals and children.
template <typename Body>
void in_child(const Body& body) {
  const pid_t child = fork();
  if (child == 0) {
    body();
    std::fflush(nullptr);
    _exit(::testing::Test::HasFailure() ? 1 : 0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "the part in the child failed, see above";
}

/// Reads the process numbers that a script wrote, waiting until there are `count`.
std::vector<pid_t> read_pids(const std::string& path, size_t count) {
  for (int attempt = 0; attempt < 1000; ++attempt) {
    std::ifstream file(path);
    std::vector<pid_t> pids;
    for (pid_t pid = 0; file >> pid;) pids.push_back(pid);
    if (pids.size() >= count) return pids;
    std::this_thread::sleep_for(milliseconds(10));
  }
  ADD_FAILURE() << path << " never held " << count << " process numbers";
  return {};
}

void expect_gone(const std::vector<pid_t>& pids) {
  for (const pid_t process : pids) {
    for (int waited_ms = 0; is_alive({process, 0}) && waited_ms < 2000; waited_ms += 10) {
      std::this_thread::sleep_for(milliseconds(10));
    }
    EXPECT_FALSE(is_alive({process, 0})) << "process " << process << " is alive after 2 s";
  }
}

TEST(ProcessTreeOnLinux, NamesTheSignalThatKilledAChild) {
  in_child([] {
    ProcessTree tree;
    tree.start(shell("kill -9 $$"));
    const ExitStatus killed = tree.wait(milliseconds(20'000)).status;
    EXPECT_EQ(killed.signal, SIGKILL);
    EXPECT_EQ(killed.shell_code(), 137);
    EXPECT_EQ(killed.describe(), "killed by signal 9 (Killed)");
  });
}

TEST(ProcessTreeOnLinux, SignalsFromAnybodyAreStopRequests) {
  for (const char* name : {"TERM", "INT", "HUP", "QUIT"}) {
    in_child([&] {
      ProcessTree tree;
      const ProcessId process = tree.start(shell(std::string("kill -") + name + " $PPID; sleep 60"));
      const ProcessEvent event = tree.wait(milliseconds(20'000));
      EXPECT_EQ(event.kind, ProcessEvent::Kind::kStopRequested);
      EXPECT_FALSE(event.from_terminal);
      tree.send(process, StopSignal::kTerminate);
      EXPECT_EQ(tree.wait(milliseconds(20'000)).status.signal, SIGTERM);
    });
  }
}

TEST(ProcessTreeOnLinux, KillsDescendantsThatMovedToAnotherSession) {
  const std::string path = test_path("process_session");
  in_child([&] {
    ProcessTree tree;
    tree.start(shell("setsid sh -c 'echo $$ >> " + path + "; sleep 60' & sleep 0.2; exit 0"));
    tree.wait(milliseconds(20'000));
    read_pids(path, 1);
    EXPECT_TRUE(tree.has_descendants());
  });
  expect_gone(read_pids(path, 1));
  remove_file(path);
}

/// A guarded run of two levels of processes that take no notice of SIGTERM and record their numbers: supervisor, child,
/// grandchild in a session of its own.
pid_t start_guarded_run(const std::string& path) {
  const pid_t guard = fork();
  if (guard != 0) return guard;
  _exit(run_guarded([&] {
          ProcessTree tree;
          const ProcessId child = tree.start(shell("trap '' TERM; echo $PPID >> " + path + "; echo $$ >> " + path +
                                                   "; setsid sh -c 'trap \"\" TERM; echo $$ >> " + path +
                                                   "; sleep 61; sleep 61' & sleep 61; sleep 61"));
          const ProcessEvent event = tree.wait(std::nullopt);
          return event.kind == ProcessEvent::Kind::kStopRequested && child > 0 ? 77 : 1;
        }).shell_code());
}

TEST(RunGuardedOnLinux, LeavesNothingWhenTheOuterProcessIsKilled) {
  const std::string path = test_path("guard_outer_linux");
  const pid_t guard = start_guarded_run(path);
  const std::vector<pid_t> pids = read_pids(path, 3);
  kill(guard, SIGKILL);
  waitpid(guard, nullptr, 0);
  expect_gone(pids);
  remove_file(path);
}

TEST(RunGuardedOnLinux, LeavesNothingWhenTheSupervisorIsKilled) {
  const std::string path = test_path("guard_inner");
  const pid_t guard = start_guarded_run(path);
  const std::vector<pid_t> pids = read_pids(path, 3);
  ASSERT_EQ(pids.size(), 3u);
  kill(pids[0], SIGKILL);
  int status = 0;
  waitpid(guard, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 137);
  expect_gone(pids);
  remove_file(path);
}

TEST(RunGuardedOnLinux, PassesSignalsToTheBodyAndReturnsItsResult) {
  const std::string path = test_path("guard_stop_linux");
  const pid_t guard = start_guarded_run(path);
  const std::vector<pid_t> pids = read_pids(path, 3);
  kill(guard, SIGINT);
  int status = 0;
  waitpid(guard, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 77);
  expect_gone(pids);
  remove_file(path);
}

}  // namespace
}  // namespace deepscale
