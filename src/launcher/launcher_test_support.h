// For tests of the launcher's program: starts it with ranks that do what the test says (launcher_test_rank.cpp).
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "platform/machine.h"
#include "platform/process.h"
#include "platform/resources.h"

namespace deepscale {

using Strings = std::vector<std::string>;

/// Whole text of a file without carriage returns; empty when there is none.
inline std::string read_text(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  std::erase(text, '\r');
  return text;
}

struct Outcome {
  int code = -1;
  std::string text;  ///< standard output and error
};

class LauncherProgram : public ::testing::Test {
 protected:
  using Clock = std::chrono::steady_clock;

  void SetUp() override {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = std::filesystem::temp_directory_path() / (std::string(test->name()) + std::to_string(this_process_id()));
    std::filesystem::create_directories(folder_);
    variables_ = environment_variables();
    tree_ = std::make_unique<ProcessTree>();
  }
  void TearDown() override {
    tree_.reset();
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }

  std::string file(const std::string& name) const { return (folder_ / name).string(); }
  std::string text_of(const std::string& name) const { return read_text(folder_ / name); }

  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ / name, std::ios::binary) << text;
    return file(name);
  }

  ProcessId start(const Strings& arguments) {
    ProcessSpec spec;
    spec.arguments = arguments;
    spec.arguments.insert(spec.arguments.begin(), DEEPSCALE_LAUNCHER_PATH);
    for (const auto& [name, value] : variables_) spec.environment.push_back(name + "=" + value);
    spec.output_file = file("output" + std::to_string(++runs_));
    spec.own_group = true;
    const ProcessId process = tree_->start(spec);
    outputs_[process] = spec.output_file;
    return process;
  }

  /// Starts `ranks` ranks that follow the script.
  ProcessId start_ranks(int ranks, const Strings& script, Strings options = {}) {
    options.insert(options.end(), {"--num_gpus", std::to_string(ranks), "--no_python", DEEPSCALE_TEST_RANK_PATH});
    options.insert(options.end(), script.begin(), script.end());
    return start(options);
  }

  Outcome finish(ProcessId process) {
    while (!ended_.contains(process)) {
      const ProcessEvent event = tree_->wait(std::chrono::seconds(60));
      if (event.kind == ProcessEvent::Kind::kTimeout) {
        ADD_FAILURE() << "the launcher did not end: " << read_text(outputs_[process]);
        return {};
      }
      if (event.kind == ProcessEvent::Kind::kExited) ended_[event.process] = event.status.shell_code();
    }
    return {ended_[process], read_text(outputs_[process])};
  }

  Outcome run(const Strings& arguments) { return finish(start(arguments)); }

  Outcome run_ranks(int ranks, const Strings& script, const Strings& options = {}) {
    return finish(start_ranks(ranks, script, options));
  }

  static Strings with(Strings words, const Strings& more) {
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }

  /// Waits until a rank has written the file.
  void wait_for_text(ProcessId launcher, const std::string& name) {
    for (int attempt = 0; attempt < 6000 && text_of(name).empty(); ++attempt)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    ASSERT_NE(text_of(name), "") << "no " << name << ": " << read_text(outputs_[launcher]);
  }

  /// Processes of a run by role ("rank", "helper"), as its ranks wrote them down.
  using Members = std::vector<std::pair<std::string, ProcessIdentity>>;

  Members members() const {
    std::istringstream text(text_of("pids"));
    Members found;
    std::string role;
    for (ProcessIdentity identity; text >> role >> identity.pid >> identity.start_time;)
      found.emplace_back(role, identity);
    return found;
  }

  /// Two ranks that end only when they are killed, each with a helper in a session of its own. All ignore requests.
  ProcessId start_stubborn_run() {
    std::filesystem::remove(folder_ / "pids");
    const ProcessId launcher =
        start_ranks(2, {"ignore", "pid", file("pids"), "rank", "helper", file("pids"), "forever"});
    for (int attempt = 0; attempt < 2000 && members().size() < 4; ++attempt)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    EXPECT_EQ(members().size(), 4u) << "the ranks did not start: " << read_text(outputs_[launcher]);
    return launcher;
  }

  void expect_gone_within_two_seconds(const Members& processes, Clock::time_point since) const {
    for (const auto& [role, identity] : processes) {
      while (is_alive(identity) && Clock::now() - since < std::chrono::seconds(2))
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      EXPECT_FALSE(is_alive(identity)) << role << " " << identity.pid << " is alive after 2 s";
    }
  }

  void expect_text(const std::string& text, const std::string& part) const {
    EXPECT_NE(text.find(part), std::string::npos) << "lacks \"" << part << "\": " << text;
  }

  std::filesystem::path folder_;
  std::map<std::string, std::string> variables_;  ///< of the launcher
  std::unique_ptr<ProcessTree> tree_;
  std::map<ProcessId, std::string> outputs_;
  std::map<ProcessId, int> ended_;
  int runs_ = 0;
};

}  // namespace deepscale
