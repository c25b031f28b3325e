#include "platform/process.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/error.h"
#include "platform/line_tail.h"
#include "platform/local_port.h"
#include "platform/machine.h"

namespace deepscale {
namespace {

using std::chrono::milliseconds;

ProcessSpec shell(const std::string& script) {
  ProcessSpec spec;
  spec.arguments = {"sh", "-c", script};
  for (const auto& [name, value] : environment_variables()) spec.environment.push_back(name + "=" + value);
  return spec;
}

/// Waits for the end of `process`; fails the test when it takes more than 20 s.
ExitStatus wait_for(ProcessTree& tree, ProcessId process) {
  for (;;) {
    const ProcessEvent event = tree.wait(milliseconds(20'000));
    if (event.kind == ProcessEvent::Kind::kTimeout) {
      ADD_FAILURE() << "process " << process << " did not end";
      return {};
    }
    if (event.kind == ProcessEvent::Kind::kExited && event.process == process) return event.status;
  }
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

std::string read_file(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string temporary_path(const std::string& name) {
  return (std::filesystem::temp_directory_path() / (name + std::to_string(getpid()))).string();
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

bool is_alive(pid_t process) {
  std::ifstream file("/proc/" + std::to_string(process) + "/stat");
  std::string line;
  if (!std::getline(file, line)) return false;
  return line[line.rfind(')') + 2] != 'Z';
}

void expect_gone(const std::vector<pid_t>& pids) {
  for (const pid_t process : pids) {
    for (int waited_ms = 0; is_alive(process) && waited_ms < 2000; waited_ms += 10) {
      std::this_thread::sleep_for(milliseconds(10));
    }
    EXPECT_FALSE(is_alive(process)) << "process " << process << " is alive after 2 s";
  }
}

TEST(ProcessTree, ReportsExitCodesAndSignals) {
  in_child([] {
    ProcessTree tree;
    EXPECT_EQ(wait_for(tree, tree.start(shell("exit 7"))).code, 7);
    const ExitStatus killed = wait_for(tree, tree.start(shell("kill -9 $$")));
    EXPECT_EQ(killed.signal, SIGKILL);
    EXPECT_EQ(killed.shell_code(), 137);
    EXPECT_EQ(killed.describe(), "killed by signal 9 (Killed)");
    EXPECT_TRUE(wait_for(tree, tree.start(shell("true"))).ok());
  });
}

TEST(ProcessTree, GivesTheChildExactlyTheEnvironmentAsked) {
  const std::string path = temporary_path("process_env");
  in_child([&] {
    ProcessTree tree;
    ProcessSpec spec;
    spec.arguments = {"/usr/bin/env"};
    spec.environment = {"RANK=3", "EMPTY="};
    spec.output_file = path;
    EXPECT_TRUE(wait_for(tree, tree.start(spec)).ok());
  });
  EXPECT_EQ(read_file(path), "RANK=3\nEMPTY=\n");
  std::filesystem::remove(path);
}

TEST(ProcessTree, NamesTheProgramThatCannotBeStarted) {
  in_child([] {
    ProcessTree tree;
    ProcessSpec spec;
    spec.arguments = {"no_such_program_anywhere"};
    try {
      tree.start(spec);
      ADD_FAILURE() << "started a program that does not exist";
    } catch (const IoError& error) {
      EXPECT_NE(std::string(error.what()).find("no_such_program_anywhere"), std::string::npos) << error.what();
    }
  });
}

TEST(ProcessTree, KeepsTheLastLinesOfStandardErrorAndPassesAllThrough) {
  const std::string path = temporary_path("process_tail");
  in_child([&] {
    ASSERT_NE(freopen(path.c_str(), "w", stderr), nullptr);
    ProcessTree tree;
    ProcessSpec spec = shell("i=1; while [ $i -le 100 ]; do echo line $i >&2; i=$((i+1)); done");
    spec.keep_error_tail = true;
    const ProcessId process = tree.start(spec);
    wait_for(tree, process);
    tree.flush_captured(milliseconds(2000));
    const std::vector<std::string> tail = tree.error_tail(process);
    ASSERT_EQ(tail.size(), static_cast<size_t>(kErrorTailLines));
    EXPECT_EQ(tail.front(), "line 71");
    EXPECT_EQ(tail.back(), "line 100");
  });
  const std::string passed = read_file(path);
  EXPECT_EQ(std::count(passed.begin(), passed.end(), '\n'), 100);
  std::filesystem::remove(path);
}

TEST(RunAndRead, GivesTheOutputAndTheStatus) {
  const ProcessOutput result = run_and_read(shell("seq 1 5000; exit 4"));
  EXPECT_EQ(result.status.code, 4);
  EXPECT_EQ(std::count(result.output.begin(), result.output.end(), '\n'), 5000);
}

TEST(ProcessTree, DeliversStopRequestsAsEvents) {
  in_child([] {
    ProcessTree tree;
    const ProcessId process = tree.start(shell("kill -TERM $PPID; sleep 60"));
    const ProcessEvent event = tree.wait(milliseconds(20'000));
    EXPECT_EQ(event.kind, ProcessEvent::Kind::kStopRequested);
    EXPECT_EQ(event.signal, SIGTERM);
    EXPECT_FALSE(event.from_terminal);
    tree.send(process, StopSignal::kTerminate);
    EXPECT_EQ(wait_for(tree, process).signal, SIGTERM);
  });
}

TEST(ProcessTree, KillsDescendantsThatMovedToAnotherSession) {
  const std::string path = temporary_path("process_session");
  in_child([&] {
    ProcessTree tree;
    tree.start(shell("setsid sh -c 'echo $$ >> " + path + "; sleep 60' & sleep 0.2; exit 0"));
    tree.wait(milliseconds(20'000));
    read_pids(path, 1);
    EXPECT_TRUE(tree.has_descendants());
  });
  expect_gone(read_pids(path, 1));
  std::filesystem::remove(path);
}

/// A guarded run of two levels of processes that record their numbers: supervisor, child, grandchild.
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

TEST(RunGuarded, LeavesNothingWhenTheOuterProcessIsKilled) {
  const std::string path = temporary_path("guard_outer");
  const pid_t guard = start_guarded_run(path);
  const std::vector<pid_t> pids = read_pids(path, 3);
  kill(guard, SIGKILL);
  waitpid(guard, nullptr, 0);
  expect_gone(pids);
  std::filesystem::remove(path);
}

TEST(RunGuarded, LeavesNothingWhenTheSupervisorIsKilled) {
  const std::string path = temporary_path("guard_inner");
  const pid_t guard = start_guarded_run(path);
  const std::vector<pid_t> pids = read_pids(path, 3);
  ASSERT_EQ(pids.size(), 3u);
  kill(pids[0], SIGKILL);
  int status = 0;
  waitpid(guard, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 137);
  expect_gone(pids);
  std::filesystem::remove(path);
}

TEST(RunGuarded, PassesStopRequestsToTheBodyAndReturnsItsResult) {
  const std::string path = temporary_path("guard_stop");
  const pid_t guard = start_guarded_run(path);
  const std::vector<pid_t> pids = read_pids(path, 3);
  kill(guard, SIGINT);
  int status = 0;
  waitpid(guard, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 77);
  expect_gone(pids);
  std::filesystem::remove(path);
}

TEST(LineTail, CountsAProgressBarAsOneLine) {
  LineTail tail(2);
  tail.append("first\nsecond\n10%\r20%\r");
  tail.append("30%\nend");
  EXPECT_EQ(tail.lines(), (std::vector<std::string>{"30%", "end"}));
  tail.append("\r\n");
  EXPECT_EQ(tail.lines(), (std::vector<std::string>{"30%", "end"}));
}

TEST(LocalPort, IsRefusedToASecondClaimUntilTheFirstIsGone) {
  auto first = std::make_optional(LocalPort::claim_any());
  const int port = first->number();
  EXPECT_GT(port, 0);
  EXPECT_FALSE(LocalPort::claim(port).has_value());
  first.reset();
  EXPECT_TRUE(LocalPort::claim(port).has_value());
}

}  // namespace
}  // namespace deepscale
