#include "launcher/launch_plan.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/error.h"

namespace deepscale {
namespace {

using Strings = std::vector<std::string>;

MachineFacts machine(int gpus, std::map<std::string, std::string> environment = {}) {
  MachineFacts facts;
  facts.environment = std::move(environment);
  facts.cpus = {0, 1, 2, 3, 4, 5, 6, 7};
  facts.gpu_count = gpus;
  facts.host = "here";
  return facts;
}

LauncherOptions options(Strings arguments) {
  arguments.push_back("train.py");
  arguments.push_back("--lr=1");
  return parse_command_line(arguments).options;
}

Strings slots(const Strings& arguments, const MachineFacts& facts) {
  return make_launch_plan(options(arguments), facts).hosts.at(0).slots;
}

std::string value_of(const ProcessSpec& spec, const std::string& name) {
  for (const std::string& entry : spec.environment) {
    if (entry.starts_with(name + "=")) return entry.substr(name.size() + 1);
  }
  return "(unset)";
}

TEST(LaunchPlan, StartsOneRankPerGpuAndOtherwiseLocalSizeOrOne) {
  EXPECT_EQ(slots({}, machine(3)), (Strings{"0", "1", "2"}));
  EXPECT_EQ(slots({}, machine(0)), Strings{"0"});
  EXPECT_EQ(slots({}, machine(0, {{"LOCAL_SIZE", "2"}})), (Strings{"0", "1"}));
  EXPECT_EQ(slots({}, machine(3, {{"DS_ACCELERATOR", "cpu"}})), Strings{"0"});
  EXPECT_THROW(slots({}, machine(0, {{"LOCAL_SIZE", "0"}})), ConfigError);
  EXPECT_EQ(slots({"--num_gpus", "4"}, machine(0)).size(), 4u);
}

TEST(LaunchPlan, UsesVisibleDevicesAlsoTogetherWithANumber) {
  const MachineFacts facts = machine(4, {{"CUDA_VISIBLE_DEVICES", "0,2,GPU-5"}});
  EXPECT_EQ(slots({}, facts), (Strings{"0", "2", "GPU-5"}));
  EXPECT_EQ(slots({"--num_gpus", "2"}, facts), (Strings{"0", "2"}));
  EXPECT_EQ(slots({"--num_gpus", "4"}, facts), (Strings{"0", "1", "2", "3"}));
  EXPECT_EQ(slots({"--include", "localhost:3"}, facts), Strings{"3"});
  for (const Strings& arguments : {Strings{}, Strings{"--num_gpus", "2"}, Strings{"--num_gpus", "4"}}) {
    EXPECT_EQ(make_launch_plan(options(arguments), facts).notes.size(), 1u) << "the user is told about every decision";
  }
}

TEST(LaunchPlan, KeepsHiddenGpusHidden) {
  for (const char* hidden : {"", "-1"}) {
    const LaunchPlan plan =
        make_launch_plan(options({"--num_gpus", "2"}), machine(4, {{"CUDA_VISIBLE_DEVICES", hidden}}));
    EXPECT_EQ(plan.visible_devices, hidden);
    EXPECT_EQ(plan.world_size(), 2);
  }
}

TEST(LaunchPlan, ChecksFilterSlotsAgainstGpusAndLetsThemNameRanksWithoutGpus) {
  EXPECT_EQ(slots({"--include", "here:1"}, machine(2)), Strings{"1"});
  EXPECT_THROW(slots({"--include", "localhost:2"}, machine(2)), ConfigError);
  EXPECT_EQ(slots({"--exclude", "localhost:0"}, machine(2)), Strings{"1"});
  EXPECT_EQ(slots({"--include", "localhost:0,1,10"}, machine(0)), (Strings{"0", "1", "10"}));
  EXPECT_THROW(slots({"--include", "localhost:2"}, machine(0, {{"LOCAL_SIZE", "2"}})), ConfigError);
  EXPECT_THROW(slots({"--include", "elsewhere:0"}, machine(2)), ConfigError);
}

TEST(LaunchPlan, RefusesSeveralMachinesByName) {
  const auto message = [](const Strings& arguments, const MachineFacts& facts) {
    try {
      make_launch_plan(options(arguments), facts);
    } catch (const UnsupportedError& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  MachineFacts with_hostfile = machine(0);
  with_hostfile.given_hostfile_exists = true;
  MachineFacts with_default = machine(0);
  with_default.default_hostfile_exists = true;
  for (const std::string& text : {message({"--num_nodes", "2"}, machine(0)), message({"--node_rank", "0"}, machine(0)),
                                  message({"--hostfile", "hosts"}, with_hostfile), message({}, with_default)}) {
    EXPECT_NE(text.find("multi-node: not built yet"), std::string::npos) << text;
  }
  EXPECT_EQ(make_launch_plan(options({"--num_nodes", "1"}), with_default).notes.size(), 1u);
  EXPECT_EQ(make_launch_plan(options({"--hostfile", "missing"}), machine(0)).notes.size(), 1u);
}

TEST(RankProcess, HasTheCustomaryEnvironmentAndCommand) {
  const LauncherOptions parsed = options({"--num_gpus", "2", "--master_port", "1234", "--master_addr", "10.0.0.1"});
  const MachineFacts facts = machine(2, {{"PATH", "/bin"}, {"RANK", "77"}});
  const ProcessSpec spec = rank_process(parsed, make_launch_plan(parsed, facts), facts, 1, "/venv/bin/python3");
  EXPECT_EQ(spec.arguments, (Strings{"/venv/bin/python3", "-u", "train.py", "--local_rank=1", "--lr=1"}));
  const std::map<std::string, std::string> expected = {
      {"RANK", "1"},           {"LOCAL_RANK", "1"},         {"WORLD_SIZE", "2"},     {"LOCAL_SIZE", "2"},
      {"CROSS_RANK", "0"},     {"CROSS_SIZE", "1"},         {"PATH", "/bin"},        {"CUDA_VISIBLE_DEVICES", "0,1"},
      {"MASTER_PORT", "1234"}, {"MASTER_ADDR", "10.0.0.1"}, {"OMP_NUM_THREADS", "4"}};
  for (const auto& [name, value] : expected) EXPECT_EQ(value_of(spec, name), value) << name;
  EXPECT_EQ(spec.environment.size(), expected.size());
}

TEST(RankProcess, FollowsModuleNoPythonAndNoLocalRank) {
  const MachineFacts facts = machine(0);
  const auto arguments = [&](const Strings& given) {
    const LauncherOptions parsed = options(given);
    return rank_process(parsed, make_launch_plan(parsed, facts), facts, 0, "python3").arguments;
  };
  EXPECT_EQ(arguments({"--module"}), (Strings{"python3", "-u", "-m", "train.py", "--local_rank=0", "--lr=1"}));
  EXPECT_EQ(arguments({"--no_python"}), (Strings{"train.py", "--local_rank=0", "--lr=1"}));
  EXPECT_EQ(arguments({"--no_local_rank"}), (Strings{"python3", "-u", "train.py", "--lr=1"}));
}

TEST(RankProcess, LeavesThreadsToTheUserAndToASingleRank) {
  const auto threads = [](const Strings& given, const MachineFacts& facts) {
    const LauncherOptions parsed = options(given);
    return value_of(rank_process(parsed, make_launch_plan(parsed, facts), facts, 0, "python3"), "OMP_NUM_THREADS");
  };
  EXPECT_EQ(threads({"--num_gpus", "2"}, machine(0, {{"OMP_NUM_THREADS", "5"}})), "5");
  EXPECT_EQ(threads({}, machine(0)), "(unset)");
  EXPECT_EQ(threads({"--num_gpus", "20"}, machine(0)), "1");
}

TEST(RankProcess, SharesTheCoresOutWhenBinding) {
  const LauncherOptions parsed = options({"--num_gpus", "3", "--bind_core_list", "0-6"});
  const MachineFacts facts = machine(0);
  const LaunchPlan plan = make_launch_plan(parsed, facts);
  const ProcessSpec spec = rank_process(parsed, plan, facts, 2, "python3");
  EXPECT_EQ(spec.cpus, (std::vector<int>{4, 5}));
  EXPECT_EQ(value_of(spec, "OMP_NUM_THREADS"), "2");
  EXPECT_THROW(make_launch_plan(options({"--num_gpus", "9", "--bind_cores_to_rank"}), facts), ConfigError);
  EXPECT_THROW(make_launch_plan(options({"--bind_core_list", "6-9"}), facts), ConfigError);
  EXPECT_THROW(make_launch_plan(options({"--bind_cores_to_rank"}), machine(0, {{"KMP_AFFINITY", "x"}})), ConfigError);
}

}  // namespace
}  // namespace deepscale
