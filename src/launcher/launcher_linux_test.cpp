// What only exists on Linux: the supervising process beside the launcher's own, hang-ups, permissions, stub backends.
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>

#include "launcher/launcher_test_support.h"

namespace deepscale {
namespace {

using std::chrono::milliseconds;

class LauncherOnLinux : public LauncherProgram {
 protected:
  /// Parent of a process.
  static pid_t parent_of(int64_t process) {
    const std::string line = read_text("/proc/" + std::to_string(process) + "/stat");
    return std::stoi(line.substr(line.rfind(')') + 4));
  }

  /// An executable shell script.
  std::string script(const std::string& name, const std::string& text) const {
    const std::string path = write(name, "#!/bin/sh\n" + text + "\n");
    chmod(path.c_str(), 0755);
    return path;
  }
};

TEST_F(LauncherOnLinux, LeavesNothingWhenItsSupervisorIsKilled) {
  const ProcessId launcher = start_stubborn_run();
  const Members processes = members();
  const auto rank =
      std::find_if(processes.begin(), processes.end(), [](const auto& one) { return one.first == "rank"; });
  ASSERT_NE(rank, processes.end());
  const pid_t supervisor = parent_of(rank->second.pid);
  EXPECT_EQ(parent_of(supervisor), launcher);
  const Clock::time_point killed = Clock::now();
  kill(supervisor, SIGKILL);
  const Outcome outcome = finish(launcher);
  expect_gone_within_two_seconds(processes, killed);
  EXPECT_EQ(outcome.code, 137);
  expect_text(outcome.text, "supervising process was killed by signal 9");
}

TEST_F(LauncherOnLinux, LeavesNothingWhenARankIsKilled) {
  const ProcessId launcher = start_stubborn_run();
  const Members processes = members();
  const auto rank =
      std::find_if(processes.begin(), processes.end(), [](const auto& one) { return one.first == "rank"; });
  const Clock::time_point killed = Clock::now();
  kill(static_cast<pid_t>(rank->second.pid), SIGKILL);
  const Outcome outcome = finish(launcher);
  expect_gone_within_two_seconds(processes, killed);
  EXPECT_EQ(outcome.code, 137);
  expect_text(outcome.text, "failed: killed by signal 9");
}

TEST_F(LauncherOnLinux, ReturnsTheNumberOfTheSignalThatStoppedIt) {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    const ProcessId launcher = start_stubborn_run();
    const Clock::time_point stopped = Clock::now();
    kill(static_cast<pid_t>(launcher), signal);
    EXPECT_EQ(finish(launcher).code, 128 + signal);
    expect_gone_within_two_seconds(members(), stopped);
  }
}

TEST_F(LauncherOnLinux, SaysWhatSshSaid) {
  script("ssh", "echo 'ssh: connect to host two port 22: No route to host' >&2; exit 255");
  variables_["PATH"] = folder_.string() + ":" + variables_["PATH"];
  const std::string hosts = write("hosts", "localhost slots=1\ntwo.invalid slots=1\n");
  const Outcome outcome = run({"--hostfile", hosts, "--no_python", DEEPSCALE_TEST_RANK_PATH, "touch", file("started")});
  EXPECT_EQ(outcome.code, 1);
  expect_text(outcome.text,
              "host two.invalid cannot be used: ssh ended with exit code 255: ssh: connect to host two "
              "port 22: No route to host");
  EXPECT_FALSE(std::filesystem::exists(file("started0"))) << "nothing may be started";
}

TEST_F(LauncherOnLinux, PassesOnOutputThatComesLateAndKeepsTheTokenSecret) {
  // An ssh that runs the command here, and whose output takes a second longer than the agent's last words.
  script("ssh", "cat /proc/$$/cmdline >> " + file("commands") + "\nfor last; do :; done\nsh -c \"$last\" > " +
                    file("late") + " 2>&1\ncode=$?\nsleep 1\ncat " + file("late") + "\nexit $code");
  variables_["PATH"] = folder_.string() + ":" + variables_["PATH"];
  variables_["DEEPSCALE_API_KEY"] = "hidden";
  const std::string hosts = write("hosts", "two.invalid slots=2\n");
  const Outcome outcome =
      run({"--hostfile", hosts, "--no_python", DEEPSCALE_TEST_RANK_PATH, "say", "the output", "env", file("rank")});
  EXPECT_EQ(outcome.code, 0) << outcome.text;
  const size_t first = outcome.text.find("the output");
  ASSERT_NE(first, std::string::npos) << outcome.text;
  EXPECT_NE(outcome.text.find("the output", first + 1), std::string::npos) << outcome.text;
  expect_text(text_of("rank1"), "RANK=1\n");
  expect_text(text_of("commands"), "--agent");
  EXPECT_EQ(text_of("commands").find("hidden"), std::string::npos);
}

TEST_F(LauncherOnLinux, SaysWhomItWaitsForAndGivesUp) {
  script("ssh", "exec sleep 60");
  variables_["PATH"] = folder_.string() + ":" + variables_["PATH"];
  variables_["DEEPSCALE_START_TIMEOUT_S"] = "6";
  const std::string hosts = write("hosts", "localhost slots=1\ntwo.invalid slots=1\n");
  const Outcome outcome = run({"--hostfile", hosts, "--no_python", DEEPSCALE_TEST_RANK_PATH, "touch", file("started")});
  EXPECT_EQ(outcome.code, 1);
  expect_text(outcome.text, "two.invalid (ssh, ");
  expect_text(outcome.text, "two.invalid within 6 s");
  EXPECT_FALSE(std::filesystem::exists(file("started0")));
}

TEST_F(LauncherOnLinux, NamesTheHostThatPdshCannotReachWhileOthersWait) {
  script("pdsh",
         "echo 'bad: ssh: no route to it' >&2\n"
         "echo 'pdsh@here: bad: ssh exited with exit code 255' >&2\nexec sleep 60");
  variables_["PATH"] = folder_.string() + ":" + variables_["PATH"];
  const std::string hosts = write("hosts", "good slots=1\nbad slots=1\n");
  const Clock::time_point begin = Clock::now();
  const Outcome outcome = run({"--hostfile", hosts, "--launcher", "pdsh", "--no_python", DEEPSCALE_TEST_RANK_PATH});
  EXPECT_EQ(outcome.code, 1);
  expect_text(outcome.text, "host bad cannot be used: ssh failed: ssh: no route to it");
  EXPECT_LT(Clock::now() - begin, std::chrono::seconds(40));
}

TEST_F(LauncherOnLinux, GoesOnAfterAVenvScriptWhoseLastCommandFails) {
  const std::string venv = write("venv", "export FOUND=1\n[ -f /no/such/file ] && export MORE=1\n");
  const Outcome outcome = run_ranks(1, {"touch", file("ran")}, {"--venv_script", venv});
  EXPECT_EQ(outcome.code, 0) << outcome.text;
  EXPECT_TRUE(std::filesystem::exists(file("ran0")));
}

// Root may read everything: as root the launcher is started as another user.
TEST_F(LauncherOnLinux, RefusesScriptsAndDirectoriesWithoutPermission) {
  const std::string unreadable = write("unreadable.py", "print('started')\n");
  chmod(unreadable.c_str(), 0);
  const std::string not_executable = write("plain.sh", "#!/bin/sh\necho started\n");
  const std::string closed = file("closed");
  std::filesystem::create_directory(closed);
  chmod(closed.c_str(), 0555);
  chmod(folder_.c_str(), 0777);
  const auto refused = [&](const Strings& arguments, const std::string& reason) {
    ProcessSpec spec;
    spec.arguments = {"setpriv", "--reuid", "65534", "--clear-groups", DEEPSCALE_LAUNCHER_PATH};
    if (geteuid() != 0) spec.arguments = {DEEPSCALE_LAUNCHER_PATH};
    spec.arguments.insert(spec.arguments.end(), arguments.begin(), arguments.end());
    for (const auto& [name, value] : variables_) spec.environment.push_back(name + "=" + value);
    spec.output_file = file("refused");
    const ProcessId process = tree_->start(spec);
    outputs_[process] = spec.output_file;
    const Outcome result = finish(process);
    EXPECT_TRUE(result.code == 1 || result.code == 2) << reason << ": " << result.code;
    expect_text(result.text, reason);
    EXPECT_EQ(result.text.find("started"), std::string::npos);
    std::filesystem::remove(spec.output_file);
  };
  refused({unreadable}, "cannot be read: no permission");
  refused({"--no_python", not_executable}, "no such executable");
  refused({"--log_dir", closed, "--no_python", DEEPSCALE_TEST_RANK_PATH}, "cannot write the log file");
}

}  // namespace
}  // namespace deepscale
