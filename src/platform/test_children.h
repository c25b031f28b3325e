// Child processes for tests, on every system: a test program starts itself again and runs one of its disabled tests in
// the new process. So a child's body stands beside the test that uses it:
//
//   TEST(Children, DISABLED_AddsOne) { finish_child(std::stoi(child_arguments().at(0)) + 1); }
//   TEST(Thing, IsCounted) { TestChildren children; EXPECT_EQ(children.wait(children.start("AddsOne", {"6"})), 7); }
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "base/environment.h"
#include "base/error.h"
#include "platform/files.h"
#include "platform/machine.h"
#include "platform/process.h"
#include "platform/resources.h"

namespace deepscale {

/// Starts this program again with the disabled test `Children.DISABLED_<name>`. Arguments hold no line ends.
inline ProcessSpec child_spec(const std::string& name, const std::vector<std::string>& arguments = {}) {
  ProcessSpec spec;
  spec.arguments = {executable_path().string(), "--gtest_filter=Children.DISABLED_" + name,
                    "--gtest_also_run_disabled_tests", "--gtest_brief=1"};
  std::map<std::string, std::string> variables = environment_variables();
  std::string joined;
  for (const std::string& argument : arguments) joined += argument + "\n";
  variables["DEEPSCALE_TEST_CHILD"] = joined.empty() ? "\n" : joined;
  for (const auto& [key, value] : variables) spec.environment.push_back(key + "=" + value);
  return spec;
}

/// In a child: what it was started with. Fails the test when somebody runs the disabled tests by hand.
inline std::vector<std::string> child_arguments() {
  const std::string joined = environment("DEEPSCALE_TEST_CHILD").value_or("");
  DS_CHECK_AS(IoError, !joined.empty(), "this is no test, but the child process of one");
  std::vector<std::string> arguments;
  for (size_t begin = 0; begin < joined.size();) {
    const size_t end = joined.find('\n', begin);
    arguments.push_back(joined.substr(begin, end - begin));
    begin = end + 1;
  }
  return arguments;
}

/// Ends a child with this exit code, or with 99 when an expectation has failed in it. No destructors run.
[[noreturn]] inline void finish_child(int code) {
  std::fflush(nullptr);
  std::_Exit(::testing::Test::HasFailure() ? 99 : code);
}

/// Children of one test, ended with it.
class TestChildren {
 public:
  ProcessId start(const std::string& name, const std::vector<std::string>& arguments = {}) {
    return tree_.start(child_spec(name, arguments));
  }

  /// The child's end, as a shell shows it: its exit code, or 137 when it was killed. Fails the test after 60 s.
  int wait(ProcessId child) {
    while (!ended_.contains(child)) {
      const ProcessEvent event = tree_.wait(std::chrono::seconds(60));
      if (event.kind == ProcessEvent::Kind::kTimeout) {
        ADD_FAILURE() << "child process " << child << " did not end";
        return -1;
      }
      if (event.kind == ProcessEvent::Kind::kExited) ended_[event.process] = event.status.shell_code();
    }
    return ended_.at(child);
  }

  void kill(ProcessId child) { tree_.send(child, StopSignal::kKill); }
  ProcessTree& tree() { return tree_; }

 private:
  ProcessTree tree_;
  std::map<ProcessId, int> ended_;
};

/// A file of this test, whose name no other process uses.
inline std::string test_path(const std::string& name) {
  return ::testing::TempDir() + name + "_" + std::to_string(this_process_id());
}

/// Waits until the file exists; fails the test after 20 s.
inline void wait_for_file(const std::string& path) {
  for (int look = 0; !file_size(path); ++look) {
    ASSERT_LT(look, 4000) << path << " did not come";
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

}  // namespace deepscale
