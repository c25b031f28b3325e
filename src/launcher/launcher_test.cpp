// The launcher's program with real children: environment, exit codes, stop requests, and that nothing survives.
#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <thread>

namespace deepscale {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

std::string read_file(const fs::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

bool is_alive(pid_t process) {
  std::ifstream file("/proc/" + std::to_string(process) + "/stat");
  std::string line;
  if (!std::getline(file, line)) return false;
  return line[line.rfind(')') + 2] != 'Z';
}

struct Outcome {
  int code = -1;
  std::string output;
  std::string error;
};

class LauncherProgram : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::temp_directory_path() / (std::string(test->name()) + std::to_string(getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  /// An executable shell script.
  std::string script(const std::string& name, const std::string& text) const {
    const fs::path path = folder_ / name;
    std::ofstream(path) << "#!/bin/sh\n" << text << '\n';
    fs::permissions(path, fs::perms::owner_all);
    return path.string();
  }

  std::string file(const std::string& name) const { return (folder_ / name).string(); }

  pid_t start(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), DEEPSCALE_LAUNCHER_PATH);
    const pid_t process = fork();
    if (process != 0) return process;
    dup2(open(file("stdout").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644), STDOUT_FILENO);
    dup2(open(file("stderr").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644), STDERR_FILENO);
    std::vector<char*> pointers;
    for (std::string& argument : arguments) pointers.push_back(argument.data());
    pointers.push_back(nullptr);
    execv(DEEPSCALE_LAUNCHER_PATH, pointers.data());
    _exit(126);
  }

  Outcome finish(pid_t process) const {
    int status = 0;
    waitpid(process, &status, 0);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status), read_file(file("stdout")),
            read_file(file("stderr"))};
  }

  Outcome run(const std::vector<std::string>& arguments) const { return finish(start(arguments)); }

  struct StubbornRun {
    pid_t launcher = 0;
    std::map<std::string, std::vector<pid_t>> by_role;  ///< "supervisor", "rank", "helper"

    std::vector<pid_t> all() const {
      std::vector<pid_t> pids = {launcher};
      for (const auto& [role, members] : by_role) pids.insert(pids.end(), members.begin(), members.end());
      return pids;
    }
  };

  /// Starts two ranks that end only when they are killed. Each has a helper in a session of its own. All of them ignore
  /// every polite signal.
  StubbornRun start_stubborn_run() const {
    const std::string pids = file("pids");
    fs::remove(pids);
    const std::string rank =
        script("stubborn.sh", "trap '' TERM INT HUP\necho supervisor $PPID >> " + pids + "\necho rank $$ >> " + pids +
                                  "\nsetsid sh -c 'echo helper $$ >> " + pids + "; while :; do sleep 1; done' &\n" +
                                  "while :; do sleep 1; done");
    StubbornRun run;
    run.launcher = start({"--num_gpus", "2", "--no_python", rank});
    for (int attempt = 0; attempt < 1000; ++attempt) {
      std::istringstream text(read_file(pids));
      run.by_role.clear();
      std::string role;
      for (pid_t pid = 0; text >> role >> pid;) run.by_role[role].push_back(pid);
      if (run.all().size() == 7) return run;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    ADD_FAILURE() << "the ranks did not start: " << read_file(file("stderr"));
    return run;
  }

  static void expect_gone_within_two_seconds(const std::vector<pid_t>& pids, Clock::time_point since) {
    for (const pid_t process : pids) {
      while (is_alive(process) && Clock::now() - since < std::chrono::seconds(2)) {
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      }
      EXPECT_FALSE(is_alive(process)) << "process " << process << " is alive after 2 s";
    }
  }

  fs::path folder_;
};

TEST_F(LauncherProgram, GivesEveryRankItsEnvironmentAndArguments) {
  const std::string rank = script("env.sh",
                                  "echo \"$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_SIZE $CROSS_RANK $CROSS_SIZE "
                                  "$MASTER_ADDR $CUDA_VISIBLE_DEVICES\" \"$@\" > " +
                                      file("rank") + "$RANK");
  ASSERT_EQ(run({"--num_gpus", "2", "--no_python", rank, "a b", "--num_gpus=9", "*"}).code, 0);
  EXPECT_EQ(read_file(file("rank0")), "0 0 2 2 0 1 127.0.0.1 0,1 --local_rank=0 a b --num_gpus=9 *\n");
  EXPECT_EQ(read_file(file("rank1")), "1 1 2 2 0 1 127.0.0.1 0,1 --local_rank=1 a b --num_gpus=9 *\n");
}

TEST_F(LauncherProgram, ReturnsTheFailingRanksCodeAndReportsItOnce) {
  const std::string rank =
      script("fail.sh", "if [ $RANK = 1 ]; then sleep 0.2; echo the reason >&2; exit 7; fi\necho $$ > " + file("pid") +
                            "\nexec sleep 60");
  const Clock::time_point begin = Clock::now();
  const Outcome outcome = run({"--num_gpus", "3", "--no_python", rank});
  EXPECT_LT(Clock::now() - begin, std::chrono::seconds(10));
  EXPECT_EQ(outcome.code, 7);
  EXPECT_NE(outcome.error.find("rank 1 (local rank 1"), std::string::npos) << outcome.error;
  EXPECT_NE(outcome.error.find("failed: exit code 7"), std::string::npos) << outcome.error;
  EXPECT_NE(outcome.error.find("[rank 1] the reason"), std::string::npos) << outcome.error;
  EXPECT_EQ(outcome.error.find("failed:"), outcome.error.rfind("failed:")) << outcome.error;
  EXPECT_FALSE(is_alive(std::stoi(read_file(file("pid")))));
}

TEST_F(LauncherProgram, ReportsASignalAs128PlusItsNumber) {
  const Outcome outcome = run({"--no_python", script("killed.sh", "kill -9 $$")});
  EXPECT_EQ(outcome.code, 137);
  EXPECT_NE(outcome.error.find("killed by signal 9"), std::string::npos) << outcome.error;
}

TEST_F(LauncherProgram, LeavesNothingWhenTheLauncherIsKilled) {
  const StubbornRun run = start_stubborn_run();
  const Clock::time_point killed = Clock::now();
  kill(run.launcher, SIGKILL);
  finish(run.launcher);
  expect_gone_within_two_seconds(run.all(), killed);
}

TEST_F(LauncherProgram, LeavesNothingWhenItsSupervisorIsKilled) {
  const StubbornRun run = start_stubborn_run();
  const Clock::time_point killed = Clock::now();
  kill(run.by_role.at("supervisor")[0], SIGKILL);
  const Outcome outcome = finish(run.launcher);
  expect_gone_within_two_seconds(run.all(), killed);
  EXPECT_EQ(outcome.code, 137);
  EXPECT_NE(outcome.error.find("supervising process was killed by signal 9"), std::string::npos) << outcome.error;
}

TEST_F(LauncherProgram, LeavesNothingWhenARankIsKilled) {
  const StubbornRun run = start_stubborn_run();
  const Clock::time_point killed = Clock::now();
  kill(run.by_role.at("rank")[1], SIGKILL);
  const Outcome outcome = finish(run.launcher);
  expect_gone_within_two_seconds(run.all(), killed);
  EXPECT_EQ(outcome.code, 137);
  EXPECT_NE(outcome.error.find("failed: killed by signal 9"), std::string::npos) << outcome.error;
}

TEST_F(LauncherProgram, EndsEverythingWithinTwoSecondsOfAStopRequest) {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    const StubbornRun run = start_stubborn_run();
    const Clock::time_point stopped = Clock::now();
    kill(run.launcher, signal);
    EXPECT_EQ(finish(run.launcher).code, 128 + signal);
    expect_gone_within_two_seconds(run.all(), stopped);
  }
}

TEST_F(LauncherProgram, LetsRanksEndInGoodOrderOnAStopRequest) {
  const std::string rank =
      script("polite.sh", "trap 'echo saved > " + file("saved") + "$RANK; exit 0' TERM\necho $$ > " + file("ready") +
                              "$RANK\nwhile :; do sleep 0.05; done");
  const pid_t launcher = start({"--num_gpus", "2", "--no_python", rank});
  while (read_file(file("ready0")).empty() || read_file(file("ready1")).empty()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  kill(launcher, SIGTERM);
  EXPECT_EQ(finish(launcher).code, 143);
  EXPECT_EQ(read_file(file("saved0")) + read_file(file("saved1")), "saved\nsaved\n");
}

TEST_F(LauncherProgram, EndsHelpersThatSuccessfulRanksLeaveBehind) {
  const std::string rank =
      script("leaves.sh", "setsid sh -c 'echo $$ > " + file("pid") + "; exec sleep 60' &\nsleep 0.3");
  EXPECT_EQ(run({"--no_python", rank}).code, 0);
  EXPECT_FALSE(is_alive(std::stoi(read_file(file("pid")))));
}

TEST_F(LauncherProgram, WritesOneLogPerRank) {
  const std::string rank =
      script("talk.sh", "echo out $RANK\necho err $RANK >&2\n[ $RANK = 0 ] || { sleep 0.2; exit 3; }");
  const Outcome outcome = run({"--num_gpus", "2", "--log_dir", file("logs"), "--no_python", rank});
  EXPECT_EQ(outcome.code, 3);
  EXPECT_EQ(outcome.output, "");
  EXPECT_NE(outcome.error.find("[rank 1] err 1"), std::string::npos) << outcome.error;
  std::string all;
  for (const auto& entry : fs::directory_iterator(file("logs"))) {
    EXPECT_TRUE(entry.path().filename().string().ends_with("_rank0.log") ||
                entry.path().string().ends_with("_rank1.log"));
    all += read_file(entry.path());
  }
  for (const char* line : {"out 0\n", "err 0\n", "out 1\n", "err 1\n"})
    EXPECT_NE(all.find(line), std::string::npos) << all;
}

TEST_F(LauncherProgram, ChoosesAFreePortUnlessAPortWasGiven) {
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  socklen_t size = sizeof(address);
  ASSERT_EQ(bind(listener, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(listen(listener, 1), 0);
  getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size);
  const std::string busy = std::to_string(ntohs(address.sin_port));
  const std::string rank = script("port.sh", "echo $MASTER_PORT > " + file("port") + "\nsleep 0.5");
  const Outcome refused = run({"--master_port", busy, "--no_python", rank});
  EXPECT_EQ(refused.code, 1);
  EXPECT_NE(refused.error.find("--master_port " + busy + " is busy"), std::string::npos) << refused.error;
  EXPECT_FALSE(fs::exists(file("port"))) << "nothing may be started";
  close(listener);
  EXPECT_EQ(run({"--master_port", busy, "--no_python", rank}).code, 0);
  EXPECT_EQ(read_file(file("port")), busy + "\n");
  // Two runs at once without a given port.
  const std::string both = script("both.sh", "echo $MASTER_PORT >> " + file("ports") + "\nsleep 0.5");
  const pid_t first = start({"--no_python", both});
  const pid_t second = start({"--no_python", both});
  finish(first);
  finish(second);
  std::istringstream ports(read_file(file("ports")));
  int one = 0;
  int other = 0;
  ports >> one >> other;
  EXPECT_TRUE(one > 0 && other > 0 && one != other) << one << ' ' << other;
}

TEST_F(LauncherProgram, RefusesWhatCannotRunWithACodeAndAReason) {
  const std::string rank = script("ok.sh", "echo started > " + file("started"));
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"--num_gpus", "0", rank}, "at least 1"},
      {{file("missing.py")}, "no script"},
      {{"--no_python", file("missing")}, "no such executable"},
      {{"--no_python", "--log_dir", "/proc/nothing", rank}, "log directory"},
      {{"--num_nodes", "2", rank}, "needs a hostfile"},
      {{"--include", "elsewhere:0", "--no_python", rank}, "unknown host"},
      {{}, "no script"},
  };
  for (const auto& [arguments, reason] : cases) {
    const Outcome outcome = run(arguments);
    EXPECT_TRUE(outcome.code == 1 || outcome.code == 2) << reason << ": " << outcome.code;
    EXPECT_NE(outcome.error.find(reason), std::string::npos) << outcome.error;
    EXPECT_FALSE(fs::exists(file("started"))) << reason;
  }
}

TEST_F(LauncherProgram, RunsPythonScriptsAndModulesUnbuffered) {
  std::ofstream(file("show.py")) << "import os, sys\nprint(os.environ['RANK'], sys.argv[1:], "
                                    "sys.stdout.write_through)\n";
  const Outcome outcome = run({file("show.py"), "x"});
  EXPECT_EQ(outcome.code, 0) << outcome.error;
  EXPECT_EQ(outcome.output, "0 ['--local_rank=0', 'x'] True\n");
  EXPECT_EQ(run({"--module", "--no_local_rank", "platform"}).code, 0);
}

TEST_F(LauncherProgram, WritesItsNumberWhileTheRunLasts) {
  const std::string rank = script("pid.sh", "cp /tmp/*.deepspeed " + file("") + "\n");
  const pid_t launcher = start({"--save_pid", "--no_python", rank});
  const std::string name = std::to_string(launcher) + ".deepspeed";
  EXPECT_EQ(finish(launcher).code, 0);
  EXPECT_EQ(read_file(file(name)), std::to_string(launcher) + "\n");
  EXPECT_FALSE(fs::exists("/tmp/" + name));
}

}  // namespace
}  // namespace deepscale
