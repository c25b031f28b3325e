// The launcher's program with real children: environment, exit codes, stop requests, and that nothing survives.
#include "launcher/launcher_test_support.h"
#include "platform/local_port.h"
#include "platform/tcp.h"

namespace deepscale {
namespace {

using std::chrono::milliseconds;

TEST_F(LauncherProgram, GivesEveryRankItsEnvironmentAndArguments) {
  ASSERT_EQ(
      run_ranks(2, {"env", file("rank"), "a b", "--num_gpus=9", "*", "\"q\"\\", "na\xC3\xAFve \xE6\xB7\xB1"}).code, 0);
  const std::string common = "WORLD_SIZE=2\nLOCAL_SIZE=2\nCROSS_RANK=0\nCROSS_SIZE=1\nMASTER_ADDR=127.0.0.1\n";
  for (const std::string rank : {"0", "1"}) {
    const std::string text = text_of("rank" + rank);
    expect_text(text, "RANK=" + rank + "\nLOCAL_RANK=" + rank + "\n" + common);
    expect_text(text, "CUDA_VISIBLE_DEVICES=0,1\nDEEPSPEED_RESTART_COUNT=0\n");
    expect_text(text, "argument=--local_rank=" + rank + "\nargument=env\nargument=" + file("rank") +
                          "\nargument=a b\nargument=--num_gpus=9\nargument=*\nargument=\"q\"\\\nargument=na\xC3\xAFve "
                          "\xE6\xB7\xB1\n");
  }
}

TEST_F(LauncherProgram, ReturnsTheFailingRanksCodeAndReportsItOnce) {
  const Clock::time_point begin = Clock::now();
  const Outcome outcome =
      run_ranks(3, {"pid", file("pids"), "rank", "sleep", "200", "only", "1", "complain", "the reason", "exit", "7"});
  EXPECT_EQ(outcome.code, 7);
  expect_text(outcome.text, "rank 1 (local rank 1");
  expect_text(outcome.text, "failed: exit code 7");
  expect_text(outcome.text, "[rank 1] the reason");
  EXPECT_EQ(outcome.text.find("failed:"), outcome.text.rfind("failed:")) << outcome.text;
  EXPECT_LT(Clock::now() - begin, std::chrono::seconds(20));
  expect_gone_within_two_seconds(members(), Clock::now());
}

TEST_F(LauncherProgram, ReportsAKilledRankAs137) {
  const Outcome outcome = run_ranks(1, {"die"});
  EXPECT_EQ(outcome.code, 137);
  expect_text(outcome.text, "rank 0 (local rank 0");
}

TEST_F(LauncherProgram, LeavesNothingWhenTheLauncherIsKilled) {
  const ProcessId launcher = start_stubborn_run();
  const Clock::time_point killed = Clock::now();
  tree_->send(launcher, StopSignal::kKill);
  EXPECT_EQ(finish(launcher).code, 137);
  expect_gone_within_two_seconds(members(), killed);
}

TEST_F(LauncherProgram, EndsEverythingWithinTwoSecondsOfAStopRequest) {
  for (const StopSignal signal : {StopSignal::kInterrupt, StopSignal::kTerminate}) {
    const ProcessId launcher = start_stubborn_run();
    const Clock::time_point stopped = Clock::now();
    tree_->send(launcher, signal);
    const Outcome outcome = finish(launcher);
    EXPECT_TRUE(outcome.code == 130 || outcome.code == 143) << outcome.code << outcome.text;
    expect_text(outcome.text, "stop requested");
    expect_gone_within_two_seconds(members(), stopped);
  }
}

TEST_F(LauncherProgram, LetsRanksEndInGoodOrderOnAStopRequest) {
  const ProcessId launcher = start_ranks(2, {"polite", file("saved"), "touch", file("ready"), "forever"});
  wait_for_text(launcher, "ready0");
  wait_for_text(launcher, "ready1");
  tree_->send(launcher, StopSignal::kTerminate);
  EXPECT_NE(finish(launcher).code, 0);
  EXPECT_EQ(text_of("saved0") + text_of("saved1"), "saved\nsaved\n");
}

TEST_F(LauncherProgram, EndsHelpersThatSuccessfulRanksLeaveBehind) {
  const Outcome outcome = run_ranks(1, {"helper", file("pids"), "sleep", "1000"});
  EXPECT_EQ(outcome.code, 0) << outcome.text;
  ASSERT_EQ(members().size(), 1u);
  expect_gone_within_two_seconds(members(), Clock::now());
}

TEST_F(LauncherProgram, StartsAFailedJobAgain) {
  const Outcome outcome =
      run_ranks(2, {"env", file("attempt"), "only_exit", "0", "5", "forever"}, {"--max_restarts", "2"});
  EXPECT_EQ(outcome.code, 5);
  expect_text(outcome.text, "restart 1 of 2");
  expect_text(outcome.text, "restart 2 of 2");
  EXPECT_EQ(outcome.text.find("restart 3"), std::string::npos);
  expect_text(text_of("attempt0"), "DEEPSPEED_RESTART_COUNT=2\n");
  EXPECT_EQ(run_ranks(1, {"touch", file("once")}, {"--max_restarts", "2"}).text.find("restart"), std::string::npos);
}

TEST_F(LauncherProgram, DoesNotRestartAfterAStopRequest) {
  const ProcessId launcher =
      start_ranks(1, {"polite", file("saved"), "touch", file("ready"), "forever"}, {"--max_restarts", "5"});
  wait_for_text(launcher, "ready0");
  tree_->send(launcher, StopSignal::kTerminate);
  EXPECT_EQ(finish(launcher).text.find("restart"), std::string::npos);
}

TEST_F(LauncherProgram, DoesNotRestartWhenTheStopRequestComesAfterTheFailure) {
  variables_["DEEPSCALE_KILL_GRACE_MS"] = "3000";  // rank 1 ignores the polite signal: time to ask for an end
  for (const Strings& options : {Strings{}, Strings{"--force_multi"}}) {
    const ProcessId launcher =
        start_ranks(2, {"ignore", "touch", file("ready"), "await", file("ready1"), "only_exit", "0", "3", "forever"},
                    with({"--max_restarts", "5"}, options));
    wait_for_text(launcher, "ready1");
    wait_for_text(launcher, "ready0");
    std::this_thread::sleep_for(milliseconds(300));
    tree_->send(launcher, StopSignal::kTerminate);
    const Outcome outcome = finish(launcher);
    EXPECT_EQ(outcome.text.find("restart"), std::string::npos) << outcome.text;
    EXPECT_NE(outcome.code, 0);
    std::filesystem::remove(folder_ / "ready0");
    std::filesystem::remove(folder_ / "ready1");
  }
}

TEST_F(LauncherProgram, RunsThroughAgentsAsOverSeveralMachines) {
  const Outcome outcome = run_ranks(2, {"env", file("rank")}, {"--force_multi"});
  EXPECT_EQ(outcome.code, 0) << outcome.text;
  expect_text(text_of("rank1"), "RANK=1\nLOCAL_RANK=1\nWORLD_SIZE=2\nLOCAL_SIZE=2\nCROSS_RANK=0\nCROSS_SIZE=1\n");
  const Outcome failed = run_ranks(2, {"only", "1", "complain", "the reason", "exit", "9"}, {"--force_multi"});
  EXPECT_EQ(failed.code, 9);
  expect_text(failed.text, "rank 1 (local rank 1");
  expect_text(failed.text, "[rank 1] the reason");
}

TEST_F(LauncherProgram, KeepsHiddenGpusHiddenAlsoThroughAgents) {
  variables_["CUDA_VISIBLE_DEVICES"] = "-1";
  const Outcome outcome = run_ranks(2, {"env", file("rank")}, {"--force_multi"});
  EXPECT_EQ(outcome.code, 0) << outcome.text;
  expect_text(text_of("rank1"), "CUDA_VISIBLE_DEVICES=-1\n");
}

TEST_F(LauncherProgram, DoesNotRepeatWhatNeverStarted) {
  const std::string plain = write("a file", "");
  const Outcome outcome = run_ranks(
      1, {}, {"--force_multi", "--max_restarts", "5", "--log_dir", (std::filesystem::path(plain) / "logs").string()});
  EXPECT_EQ(outcome.code, 1);
  expect_text(outcome.text, "cannot make the log directory");
  EXPECT_EQ(outcome.text.find("restart 1"), std::string::npos) << outcome.text;
}

TEST_F(LauncherProgram, DoesNotChooseAPortThatOtherMachinesCannotKnow) {
  const auto claimed = LocalPort::claim(29500);  // or somebody else has it
  const Outcome outcome = run_ranks(1, {"touch", file("started")},
                                    {"--no_ssh", "--node_rank", "0", "--num_nodes", "2", "--master_addr", "127.0.0.1"});
  EXPECT_EQ(outcome.code, 1);
  expect_text(outcome.text, "port 29500 is busy");
  expect_text(outcome.text, "give --master_port");
  EXPECT_FALSE(std::filesystem::exists(file("started0")));
}

TEST_F(LauncherProgram, WritesOneLogPerRank) {
  const Outcome outcome = run_ranks(2, {"say", "out", "complain", "err", "only", "1", "sleep", "200", "exit", "3"},
                                    {"--log_dir", file("logs")});
  EXPECT_EQ(outcome.code, 3);
  expect_text(outcome.text, "[rank 1] err");
  EXPECT_FALSE(outcome.text.starts_with("out")) << outcome.text;
  std::string all;
  for (const auto& entry : std::filesystem::directory_iterator(folder_ / "logs")) {
    const std::string name = entry.path().filename().string();
    EXPECT_TRUE(name.ends_with("_rank0.log") || name.ends_with("_rank1.log")) << name;
    all += read_text(entry.path());
  }
  EXPECT_EQ(all, "out\nerr\nout\nerr\n");
}

TEST_F(LauncherProgram, ChoosesAFreePortUnlessAPortWasGiven) {
  auto listener = std::make_unique<TcpListener>();
  const std::string busy = std::to_string(listener->port());
  const Outcome refused = run_ranks(1, {"env", file("never")}, {"--master_port", busy});
  EXPECT_EQ(refused.code, 1);
  expect_text(refused.text, "--master_port " + busy + " is busy");
  EXPECT_EQ(text_of("never0"), "") << "nothing may be started";
  for (const std::string& address : own_addresses()) {
    const Outcome elsewhere = run_ranks(1, {"env", file("never")}, {"--master_port", busy, "--master_addr", address});
    expect_text(elsewhere.text, "--master_port " + busy + " is busy");
  }
  listener.reset();
  EXPECT_EQ(run_ranks(1, {"env", file("free")}, {"--master_port", busy}).code, 0);
  expect_text(text_of("free0"), "MASTER_PORT=" + busy + "\n");
  // Two runs at once without a given port.
  const ProcessId first = start_ranks(1, {"env", file("first"), "polite", file("saved"), "forever"});
  wait_for_text(first, "first0");
  EXPECT_EQ(run_ranks(1, {"env", file("second")}).code, 0);
  tree_->send(first, StopSignal::kTerminate);
  finish(first);
  const auto port = [&](const std::string& name) {
    const std::string text = text_of(name);
    const size_t begin = text.find("MASTER_PORT=");
    return text.substr(begin, text.find('\n', begin) - begin);
  };
  EXPECT_NE(port("first0"), port("second0"));
}

TEST_F(LauncherProgram, RefusesWhatCannotRunWithACodeAndAReason) {
  const std::string hosts = write("hosts", "one slots=2\ntwo slots=2\n");
  const std::string malformed = write("malformed", "one slots=2\ntwo\n");
  const std::string twice = write("twice", "one slots=2\none slots=1\n");
  const std::string empty = write("empty", "# nothing\n");
  const std::string plain = write("a file", "");
  const std::vector<std::pair<Strings, std::string>> cases = {
      {{"--num_gpus", "0"}, "--num_gpus must be at least 1"},
      {{"--num_gpus", "x"}, "--num_gpus = x: not a value"},
      {{"--venv_script", file("no venv")}, "--venv_script: "},
      {{"--num_nodes", "2"}, "--num_nodes 2 needs a hostfile"},
      {{"--hostfile", hosts, "--num_nodes", "3"}, "names 2 hosts"},
      {{"--hostfile", malformed}, "line 2: \"two\""},
      {{"--hostfile", twice}, "host \"one\" is named twice"},
      {{"--hostfile", empty}, "names no host"},
      {{"--include", "elsewhere:0"}, "unknown host \"elsewhere\""},
      {{"--hostfile", hosts, "--include", "three"}, "unknown host \"three\"; known: one, two"},
      {{"--hostfile", hosts, "--include", "two:2"}, "host \"two\" has no slot 2"},
      {{"--hostfile", hosts, "--include", "two:x"}, "\"x\" in \"two:x\" is not a slot number"},
      {{"--hostfile", hosts, "--include", "one@one"}, "named twice"},
      {{"--hostfile", hosts, "--include", "@"}, "empty host"},
      {{"--hostfile", hosts, "--exclude", "one@two"}, "--exclude leaves no slot"},
      {{"--include", "one", "--exclude", "two"}, "contradict each other"},
      {{"--include", "localhost:0", "--num_gpus", "1"}, "cannot be combined"},
      {{"--module"}, "--module and --no_python contradict each other"},
      {{"--no_ssh"}, "belong together"},
      {{"--hostfile", hosts, "--launcher", "local"}, "--launcher local contradicts"},
      {{"--launcher", "rsh"}, "--launcher must be one of"},
      {{"--log_dir", (std::filesystem::path(plain) / "logs").string()}, "cannot make the log directory"},
      {{"--bind_core_list", "9000"}, "core 9000 cannot be used here"},
      {{"--elastic_training", "--min_elastic_nodes", "3"}, "--min_elastic_nodes is 3, and there is 1 machine"},
      {{"--no_such_option"}, "unknown launcher option"},
  };
  for (const auto& [options, reason] : cases) {
    Strings arguments = options;
    arguments.insert(arguments.end(), {"--no_python", DEEPSCALE_TEST_RANK_PATH, "touch", file("started")});
    const Outcome outcome = run(arguments);
    EXPECT_TRUE(outcome.code == 1 || outcome.code == 2) << reason << ": " << outcome.code;
    expect_text(outcome.text, reason);
    EXPECT_FALSE(std::filesystem::exists(file("started0"))) << reason;
  }
}

TEST_F(LauncherProgram, RefusesScriptsAndInterpretersThatAreNotThere) {
  const auto refused = [&](const Strings& arguments, const std::string& reason) {
    const Outcome outcome = run(arguments);
    EXPECT_TRUE(outcome.code == 1 || outcome.code == 2) << reason << ": " << outcome.code;
    expect_text(outcome.text, reason);
  };
  refused({}, "no script to run");
  refused({file("missing.py")}, "there is no script");
  refused({"--no_python", file("missing")}, "no such executable");
  const std::string script = write("train.py", "");
  variables_["DEEPSCALE_PYTHON"] = file("no python");
  refused({script}, "DEEPSCALE_PYTHON");
  variables_.erase("DEEPSCALE_PYTHON");
  const std::string hosts = write("hosts", "one slots=2\ntwo slots=2\n");
  variables_["DS_ENV_FILE"] = "environment";
  variables_["HOME"] = folder_.string();
  write("environment", "A=1\nnonsense\n");
  refused({"--hostfile", hosts, "--no_python", DEEPSCALE_TEST_RANK_PATH}, "environment, line 2");
  variables_.erase("DS_ENV_FILE");
  variables_["PATH"] = folder_.string();
  variables_["TMPDIR"] = folder_.string();
  for (const char* backend : {"pdsh", "ssh", "openmpi", "mpich", "slurm", "impi", "mvapich"})
    refused({"--hostfile", hosts, "--launcher", backend, "--no_python", DEEPSCALE_TEST_RANK_PATH},
            "is not installed on this machine");
  for (const auto& entry : std::filesystem::directory_iterator(folder_))
    EXPECT_EQ(entry.path().filename().string().find("mvapich"), std::string::npos) << "left behind";
}

TEST_F(LauncherProgram, RunsPythonScriptsAndModulesUnbuffered) {
  const std::string script =
      write("show.py", "import os, sys\nprint(os.environ['RANK'], sys.argv[1:], sys.stdout.write_through)\n");
  const Outcome outcome = run({script, "x"});
  if (outcome.text.find("no Python interpreter") != std::string::npos) GTEST_SKIP() << "no Python on this system";
  EXPECT_EQ(outcome.code, 0) << outcome.text;
  // Before it, a line where another program has the usual port.
  EXPECT_TRUE(outcome.text.ends_with("0 ['--local_rank=0', 'x'] True\n")) << outcome.text;
  EXPECT_EQ(run({"--module", "--no_local_rank", "platform"}).code, 0);
}

TEST_F(LauncherProgram, WritesItsNumberWhileTheRunLasts) {
  const ProcessId launcher = start_ranks(1, {"touch", file("ready"), "sleep", "1000"}, {"--save_pid"});
  wait_for_text(launcher, "ready0");
  const std::filesystem::path path = std::filesystem::temp_directory_path() / (std::to_string(launcher) + ".deepspeed");
  EXPECT_EQ(read_text(path), std::to_string(launcher) + "\n");
  EXPECT_EQ(finish(launcher).code, 0);
  EXPECT_FALSE(std::filesystem::exists(path));
}

}  // namespace
}  // namespace deepscale
