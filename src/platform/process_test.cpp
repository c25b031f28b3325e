// The same promises on every system. What a promise means on one system alone is tested in process_linux_test.cpp and
// process_windows_test.cpp.
#include "platform/process.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <iostream>
#include <iterator>

#include "base/error.h"
#include "platform/line_tail.h"
#include "platform/local_port.h"
#include "platform/machine.h"
#include "platform/resources.h"
#include "platform/test_children.h"

namespace deepscale {
namespace {

using std::chrono::milliseconds;

std::string read_file(const std::string& path) {
  std::ifstream file(native_path(path).c_str());  // text: without the \r that Windows writes before line ends
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_identity(const std::string& path) {
  const ProcessIdentity self = this_process();
  std::ofstream(native_path(path).c_str(), std::ios::app) << self.pid << " " << self.start_time << std::endl;
}

/// The processes that children wrote, waiting until there are `count`.
std::vector<ProcessIdentity> read_identities(const std::string& path, size_t count) {
  for (int attempt = 0; attempt < 2000; ++attempt) {
    std::ifstream file(native_path(path).c_str());
    std::vector<ProcessIdentity> processes;
    for (ProcessIdentity process; file >> process.pid >> process.start_time;) processes.push_back(process);
    if (processes.size() >= count) return processes;
    std::this_thread::sleep_for(milliseconds(10));
  }
  ADD_FAILURE() << path << " never held " << count << " processes";
  return {};
}

void expect_gone(const std::vector<ProcessIdentity>& processes) {
  for (const ProcessIdentity& process : processes) {
    for (int waited_ms = 0; is_alive(process) && waited_ms < 2000; waited_ms += 10) {
      std::this_thread::sleep_for(milliseconds(10));
    }
    EXPECT_FALSE(is_alive(process)) << "process " << process.pid << " is alive after 2 s";
  }
}

[[noreturn]] void sleep_forever() {
  for (;;) std::this_thread::sleep_for(std::chrono::seconds(60));
}

TEST(Children, DISABLED_ExitsWith) {
  finish_child(std::stoi(child_arguments().at(0)));
}

TEST(Children, DISABLED_Sleeps) {
  write_identity(child_arguments().at(0));
  sleep_forever();
}

TEST(ProcessTree, ReportsExitCodesAndForcedEnds) {
  const std::string path = test_path("process_ends");
  ProcessTree tree;
  std::map<ProcessId, ExitStatus> ended;
  const auto wait_for = [&](ProcessId process) {
    while (!ended.contains(process)) {
      const ProcessEvent event = tree.wait(std::chrono::seconds(60));
      ASSERT_EQ(event.kind, ProcessEvent::Kind::kExited);
      ended[event.process] = event.status;
    }
  };
  const ProcessId seven = tree.start(child_spec("ExitsWith", {"7"}));
  const ProcessId zero = tree.start(child_spec("ExitsWith", {"0"}));
  const ProcessId sleeper = tree.start(child_spec("Sleeps", {path}));
  wait_for(seven);
  EXPECT_EQ(ended[seven].code, 7);
  EXPECT_EQ(ended[seven].describe(), "exit code 7");
  wait_for(zero);
  EXPECT_TRUE(ended[zero].ok());
  EXPECT_TRUE(tree.has_descendants());
  EXPECT_EQ(tree.wait(milliseconds(20)).kind, ProcessEvent::Kind::kTimeout);
  tree.send(sleeper, StopSignal::kKill);
  wait_for(sleeper);
  EXPECT_EQ(ended[sleeper].shell_code(), 137);
  EXPECT_FALSE(ended[sleeper].ok());
  // The system takes a moment to forget them.
  for (int look = 0; look < 500 && tree.has_descendants(); ++look) std::this_thread::sleep_for(milliseconds(10));
  EXPECT_FALSE(tree.has_descendants());
  tree.send(sleeper, StopSignal::kKill);  // has ended: nothing happens
  remove_file(path);
}

TEST(Children, DISABLED_PrintsItsEnvironment) {
  for (const auto& [name, value] : environment_variables()) std::cout << "VARIABLE " << name << "=" << value << "\n";
  finish_child(0);
}

TEST(ProcessTree, GivesTheChildTheEnvironmentAskedForAndALogFile) {
  const std::string path = test_path("process_env");
  {
    ProcessTree tree;
    ProcessSpec spec = child_spec("PrintsItsEnvironment");
    spec.environment = {"RANK=3", "EMPTY=", "WIDE=na\xC3\xAFve"};
    spec.output_file = path;
    tree.start(spec);
    EXPECT_TRUE(tree.wait(std::chrono::seconds(60)).status.ok());
  }
  const std::string output = read_file(path);
  EXPECT_NE(output.find("VARIABLE RANK=3\n"), std::string::npos) << output;
  EXPECT_NE(output.find("VARIABLE EMPTY=\n"), std::string::npos) << output;
  EXPECT_NE(output.find("VARIABLE WIDE=na\xC3\xAFve\n"), std::string::npos) << output;
  EXPECT_EQ(output.find("VARIABLE PATH="), std::string::npos) << output;
  remove_file(path);
}

TEST(Children, DISABLED_ComparesItsInput) {
  const std::string input{std::istreambuf_iterator<char>(std::cin), {}};
  EXPECT_EQ(input, child_arguments().at(0));
  finish_child(6);
}

TEST(ProcessTree, GivesTheChildTheInputAskedFor) {
  const std::string text(4096, 'x');
  ProcessTree tree;
  ProcessSpec spec = child_spec("ComparesItsInput", {text});
  spec.input = text;
  tree.start(spec);
  EXPECT_EQ(tree.wait(std::chrono::seconds(60)).status.code, 6);
  spec.input += 'x';
  EXPECT_THROW(tree.start(spec), IoError);
}

TEST(Children, DISABLED_ComparesItsArguments) {
  // gtest takes its own away and leaves the others.
  const std::vector<std::string> own = ::testing::internal::GetArgvs();
  const std::vector<std::string> wanted = child_arguments();
  EXPECT_EQ(std::vector<std::string>(own.end() - static_cast<long>(wanted.size()), own.end()), wanted);
  finish_child(5);
}

TEST(ProcessTree, GivesTheChildItsArgumentsAsTheyAre) {
  const std::vector<std::string> odd = {"two words", "",       "say \"hi\"", "C:\\with space\\",
                                        "a\\\"b",    "%PATH%", "a&b|c>d"};
  TestChildren children;
  ProcessSpec spec = child_spec("ComparesItsArguments", odd);
  spec.arguments.insert(spec.arguments.end(), odd.begin(), odd.end());
  EXPECT_EQ(children.wait(children.tree().start(spec)), 5);
}

TEST(ProcessTree, NamesTheProgramAndTheLogFileThatCannotBeUsed) {
  ProcessTree tree;
  ProcessSpec spec;
  const auto message = [&] {
    try {
      tree.start(spec);
    } catch (const IoError& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  EXPECT_NE(message().find("without a program"), std::string::npos) << message();
  spec.arguments = {"no_such_program_anywhere"};
  EXPECT_NE(message().find("no_such_program_anywhere"), std::string::npos) << message();
  spec = child_spec("ExitsWith", {"0"});
  spec.output_file = test_path("no_such_folder") + "/log";
  EXPECT_NE(message().find("no_such_folder"), std::string::npos) << message();
}

TEST(Children, DISABLED_WritesAHundredLinesOfErrors) {
  for (int line = 1; line <= 100; ++line) std::cerr << "line " << line << "\n";
  finish_child(0);
}

TEST(Children, DISABLED_KeepsTheTailOfAChild) {
  ProcessTree tree;
  ProcessSpec spec = child_spec("WritesAHundredLinesOfErrors");
  spec.keep_error_tail = true;
  const ProcessId process = tree.start(spec);
  EXPECT_EQ(tree.wait(std::chrono::seconds(60)).process, process);
  tree.flush_captured(milliseconds(10'000));
  const std::vector<std::string> tail = tree.error_tail(process);
  if (tail.size() != static_cast<size_t>(kErrorTailLines)) finish_child(1);
  finish_child(tail.front() == "line 71" && tail.back() == "line 100" ? 0 : 2);
}

TEST(ProcessTree, KeepsTheLastLinesOfStandardErrorAndPassesAllThrough) {
  const std::string path = test_path("process_tail");
  ProcessTree tree;
  ProcessSpec spec = child_spec("KeepsTheTailOfAChild");
  spec.output_file = path;
  const ProcessId process = tree.start(spec);
  EXPECT_EQ(tree.wait(std::chrono::seconds(60)).status.shell_code(), 0);
  const std::string passed = read_file(path);
  for (int line = 1; line <= 100; ++line) {
    ASSERT_NE(passed.find("line " + std::to_string(line) + "\n"), std::string::npos) << passed;
  }
  const std::vector<std::string> tail = tree.error_tail(process);
  EXPECT_EQ(tail.size(), static_cast<size_t>(kErrorTailLines)) << "the tail of a log file";
  EXPECT_EQ(std::count(tail.begin(), tail.end(), "line 100"), 1);
  remove_file(path);
}

TEST(Children, DISABLED_PrintsFiveThousandLines) {
  for (int line = 1; line <= 5000; ++line) std::cout << "number " << line << "\n";
  finish_child(4);
}

TEST(RunAndRead, GivesTheOutputAndTheStatus) {
  const ProcessOutput result = run_and_read(child_spec("PrintsFiveThousandLines"));
  EXPECT_EQ(result.status.code, 4);
  EXPECT_NE(result.output.find("number 1"), std::string::npos);
  EXPECT_NE(result.output.find("number 5000"), std::string::npos);
  EXPECT_GE(std::count(result.output.begin(), result.output.end(), '\n'), 5000);
}

/// A supervisor with a child and a grandchild; all three write who they are. Ends with 77 when it is asked to stop.
int supervise(const std::string& path) {
  ProcessTree tree;
  write_identity(path);
  tree.start(child_spec("HasASleepingChild", {path}));
  const ProcessEvent event = tree.wait(std::nullopt);
  return event.kind == ProcessEvent::Kind::kStopRequested && !event.from_terminal ? 77 : 1;
}

TEST(Children, DISABLED_HasASleepingChild) {
  const std::string path = child_arguments().at(0);
  write_identity(path);
  ProcessTree tree;
  tree.start(child_spec("Sleeps", {path}));
  sleep_forever();
}

TEST(Children, DISABLED_Supervises) {
  finish_child(supervise(child_arguments().at(0)));
}

TEST(Children, DISABLED_SupervisesGuarded) {
  const std::string path = child_arguments().at(0);
  finish_child(run_guarded([&] { return supervise(path); }).shell_code());
}

TEST(ProcessTree, DeliversStopRequestsAsEventsAndKillsWhatIsLeft) {
  for (const StopSignal signal : {StopSignal::kInterrupt, StopSignal::kTerminate}) {
    const std::string path = test_path("process_stop");
    TestChildren children;
    const ProcessId supervisor = children.start("Supervises", {path});
    const auto processes = read_identities(path, 3);
    children.tree().send(supervisor, signal);
    EXPECT_EQ(children.wait(supervisor), 77);
    expect_gone(processes);
    remove_file(path);
  }
}

TEST(ProcessTree, AChildThatDoesNotListenEndsWhenItIsAskedToStop) {
  const std::string path = test_path("process_default");
  TestChildren children;
  const ProcessId sleeper = children.start("Sleeps", {path});
  const auto processes = read_identities(path, 1);
  children.tree().send_to_descendants(StopSignal::kTerminate);
  EXPECT_NE(children.wait(sleeper), 0);
  expect_gone(processes);
  remove_file(path);
}

TEST(ProcessTree, NothingIsLeftWhenTheProcessThatHasItIsKilled) {
  const std::string path = test_path("process_killed");
  TestChildren children;
  const ProcessId supervisor = children.start("Supervises", {path});
  const auto processes = read_identities(path, 3);
  children.kill(supervisor);
  EXPECT_EQ(children.wait(supervisor), 137);
  children.tree().send_to_descendants(StopSignal::kKill);
  expect_gone(processes);
  remove_file(path);
}

TEST(RunGuarded, LeavesNothingWhenTheOuterProcessIsKilled) {
  const std::string path = test_path("guard_outer");
  TestChildren children;
  const ProcessId guard = children.start("SupervisesGuarded", {path});
  const auto processes = read_identities(path, 3);
  children.kill(guard);
  EXPECT_EQ(children.wait(guard), 137);
  expect_gone(processes);
  remove_file(path);
}

TEST(RunGuarded, PassesStopRequestsToTheBodyAndReturnsItsResult) {
  const std::string path = test_path("guard_stop");
  TestChildren children;
  const ProcessId guard = children.start("SupervisesGuarded", {path});
  const auto processes = read_identities(path, 3);
  children.tree().send(guard, StopSignal::kInterrupt);
  EXPECT_EQ(children.wait(guard), 77);
  expect_gone(processes);
  remove_file(path);
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

TEST(Machine, FactsArePlausible) {
  EXPECT_FALSE(host_name().empty());
  EXPECT_FALSE(usable_cpus().empty());
  EXPECT_GT(total_memory_bytes(), 64 << 20);
  EXPECT_FALSE(system_description().empty());
  EXPECT_TRUE(is_readable(executable_path()));
  EXPECT_FALSE(is_readable(test_path("no_such_file")));
  EXPECT_EQ(find_program(executable_path().string()), executable_path());
  EXPECT_FALSE(find_program("no_such_program_anywhere").has_value());
}

}  // namespace
}  // namespace deepscale
