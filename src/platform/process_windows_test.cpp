// What holds on Windows alone: job objects, batch files, names with endings. The counterpart of process_linux_test.cpp.
#include <gtest/gtest.h>

#include <fstream>
#include <thread>

#include "platform/process.h"
#include "platform/process_internal_windows.h"
#include "platform/resources.h"
#include "platform/test_children.h"

namespace deepscale {
namespace {

TEST(ProcessTreeOnWindows, SaysWhatExitCodesMean) {
  EXPECT_EQ(exit_status_of(3).describe(), "exit code 3");
  EXPECT_EQ(exit_status_of(kKilledExitCode).describe(), "exit code 137 (ended by force)");
  EXPECT_EQ(exit_status_of(0xC0000005).describe(), "exit code 0xc0000005 (access violation)");
  EXPECT_FALSE(exit_status_of(0xC0000005).ok());
  EXPECT_EQ(exit_status_of(0xC000013A).shell_code(), 130);
  EXPECT_EQ(exit_status_of(0xC000013A).describe(), "ended by Ctrl-C or Ctrl-Break");
}

TEST(Children, DISABLED_LeavesADetachedProcessBehind) {
  // What a program does that wants to outlive its parent: no console, a group of its own, no common handles.
  const ProcessSpec spec = child_spec("WaitsDetached", child_arguments());
  std::wstring line = to_wide("\"" + spec.arguments[0] + "\" " + spec.arguments[1] + " " + spec.arguments[2]);
  STARTUPINFOW start = {};
  start.cb = sizeof(start);
  PROCESS_INFORMATION made = {};
  const bool started =
      CreateProcessW(nullptr, line.data(), nullptr, nullptr, FALSE, DETACHED_PROCESS | CREATE_NEW_PROCESS_GROUP,
                     nullptr, nullptr, &start, &made) != 0;
  finish_child(started ? 0 : 1);
}

TEST(Children, DISABLED_WaitsDetached) {
  const ProcessIdentity self = this_process();
  std::ofstream(native_path(child_arguments().at(0)).c_str()) << self.pid << " " << self.start_time << std::endl;
  for (;;) std::this_thread::sleep_for(std::chrono::seconds(60));
}

TEST(ProcessTreeOnWindows, KillsDescendantsThatDetachedThemselves) {
  const std::string path = test_path("process_detached");
  ProcessIdentity detached;
  {
    TestChildren children;
    EXPECT_EQ(children.wait(children.start("LeavesADetachedProcessBehind", {path})), 0);
    for (int look = 0; look < 2000 && detached.start_time == 0; ++look) {
      std::ifstream(native_path(path).c_str()) >> detached.pid >> detached.start_time;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    EXPECT_TRUE(is_alive(detached));
    EXPECT_TRUE(children.tree().has_descendants());
  }
  EXPECT_FALSE(is_alive(detached));
  remove_file(path);
}

TEST(ProcessTreeOnWindows, RunsBatchFilesWithTheirArguments) {
  const std::string path = test_path("echo arguments") + ".bat";
  std::ofstream(native_path(path).c_str()) << "@echo off\r\necho [%~1] [%2]\r\nexit /b 6\r\n";
  ProcessSpec spec = child_spec("ExitsWith");
  spec.arguments = {path, "two words", "a&b"};
  const ProcessOutput result = run_and_read(spec);
  EXPECT_EQ(result.status.code, 6);
  EXPECT_NE(result.output.find("[two words] [\"a&b\"]"), std::string::npos) << result.output;
  remove_file(path);
}

TEST(MachineOnWindows, ProgramsAreFoundWithoutTheirEnding) {
  std::string path = executable_path().string();
  path.resize(path.size() - std::string_view(".exe").size());
  EXPECT_TRUE(find_program(path).has_value());
  EXPECT_TRUE(find_program("cmd").has_value()) << "in PATH";
}

TEST(TextOnWindows, LongPathsLoseTheLengthLimit) {
  EXPECT_EQ(wide_path("C:/a/b.txt"), L"C:\\a\\b.txt");
  const std::wstring wide = wide_path("C:/" + std::string(300, 'x') + "/b");
  EXPECT_TRUE(wide.starts_with(L"\\\\?\\C:\\xxx")) << to_utf8(wide);
  EXPECT_EQ(to_utf8(to_wide("na\xC3\xAFve \xF0\x9F\x8C\x8A")), "na\xC3\xAFve \xF0\x9F\x8C\x8A");
}

}  // namespace
}  // namespace deepscale
