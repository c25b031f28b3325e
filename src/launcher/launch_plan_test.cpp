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
  for (const int cpu : facts.cpus) facts.topology.cpus.push_back({cpu, cpu, 0, cpu / 4});
  facts.topology.nodes = {{0, 1 << 30}, {1, 1 << 30}};
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
    EXPECT_EQ(plan.ranks, 2);
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

MachineFacts cluster() {
  MachineFacts facts = machine(0);
  facts.hostfile = {{"one", {"0", "1"}}, {"two", {"0", "1"}}, {"three", {"0", "1", "2"}}};
  facts.hostfile_path = "hosts";
  facts.own_names = {"one"};
  return facts;
}

std::string plan_error(const Strings& arguments, const MachineFacts& facts) {
  try {
    make_launch_plan(options(arguments), facts);
  } catch (const ConfigError& error) {
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return {};
}

TEST(LaunchPlan, TakesTheHostsOfTheHostfileInItsOrder) {
  const LaunchPlan all = make_launch_plan(options({}), cluster());
  EXPECT_EQ(all.hosts, cluster().hostfile);
  EXPECT_EQ(all.backend, Backend::kSsh);
  EXPECT_EQ(all.nodes, 3);
  EXPECT_EQ(all.ranks, 7);
  EXPECT_EQ(all.first_rank(2), 4);
  EXPECT_EQ(all.master_addr, "") << "found out when the machines have answered";
  const LaunchPlan two = make_launch_plan(options({"--num_nodes", "2", "--num_gpus", "1"}), cluster());
  EXPECT_EQ(two.hosts, (std::vector<HostSlots>{{"one", {"0"}}, {"two", {"0"}}}));
  const LaunchPlan filtered = make_launch_plan(options({"--include", "three:2,0@two"}), cluster());
  EXPECT_EQ(filtered.hosts, (std::vector<HostSlots>{{"two", {"0", "1"}}, {"three", {"0", "2"}}}));
  const LaunchPlan rest = make_launch_plan(options({"--exclude", "localhost@two:1", "--launcher", "pdsh"}), cluster());
  EXPECT_EQ(rest.hosts, (std::vector<HostSlots>{{"two", {"0"}}, {"three", {"0", "1", "2"}}}));
  EXPECT_EQ(rest.backend, Backend::kPdsh);
  EXPECT_EQ(make_launch_plan(options({"--elastic_training", "--max_elastic_nodes", "2"}), cluster()).nodes, 2);
}

TEST(LaunchPlan, StaysLocalWhenThisMachineIsAllThatIsLeft) {
  const LaunchPlan here = make_launch_plan(options({"--include", "one:1"}), cluster());
  EXPECT_EQ(here.backend, Backend::kLocal);
  EXPECT_EQ(here.visible_devices, "1");
  EXPECT_EQ(here.master_addr, "127.0.0.1");
  EXPECT_EQ(make_launch_plan(options({"--include", "two"}), cluster()).backend, Backend::kSsh);
  EXPECT_EQ(make_launch_plan(options({"--include", "one", "--force_multi"}), cluster()).backend, Backend::kSsh);
  EXPECT_EQ(make_launch_plan(options({"--force_multi"}), machine(0)).backend, Backend::kSsh);
}

TEST(LaunchPlan, StartsOneMachineOfManyByHand) {
  const Strings by_hand = {"--no_ssh", "--node_rank", "2", "--master_addr", "10.0.0.1"};
  const LaunchPlan listed = make_launch_plan(options(by_hand), cluster());
  EXPECT_EQ(listed.backend, Backend::kLocal);
  EXPECT_EQ(listed.local_size(), 3);
  EXPECT_EQ(listed.first_rank(listed.node_rank), 4);
  EXPECT_EQ(listed.visible_devices, "0,1,2");
  Strings numbered = by_hand;
  numbered.insert(numbered.end(), {"--num_nodes", "4", "--num_gpus", "2"});
  const LaunchPlan counted = make_launch_plan(options(numbered), machine(0));
  EXPECT_EQ(counted.ranks, 8);
  EXPECT_EQ(counted.first_rank(counted.node_rank), 4);
  EXPECT_NE(plan_error({"--no_ssh", "--node_rank", "3", "--master_addr", "a"}, cluster()).find("--node_rank 3"),
            std::string::npos);
}

TEST(LaunchPlan, LetsSlurmChooseTheMachines) {
  const LaunchPlan plan =
      make_launch_plan(options({"--launcher", "slurm", "--num_nodes", "2", "--num_gpus", "4"}), machine(0));
  EXPECT_EQ(plan.backend, Backend::kSlurm);
  EXPECT_TRUE(plan.hosts.empty());
  EXPECT_EQ(plan.ranks, 8);
}

TEST(LaunchPlan, RefusesWhatTheHostfileOrTheBackendCannotDo) {
  const std::vector<std::pair<Strings, std::string>> cases = {
      {{"--num_nodes", "4"}, "names 3 hosts"},
      {{"--include", "four"}, "unknown host"},
      {{"--include", "two:7"}, "has no slot 7"},
      {{"--exclude", "one@two@three"}, "leaves no slot"},
      {{"--launcher", "local"}, "several hosts"},
      {{"--launcher", "openmpi", "--num_nodes", "2"}, "cannot be combined"},
      {{"--launcher", "mpich"}, "same number of slots"},
      {{"--launcher", "slurm", "--include", "one:1@two:1"}, "slots 0..N-1"},
      {{"--launcher", "openmpi", "--bind_cores_to_rank"}, "--bind_cores_to_rank"},
      {{"--launcher", "openmpi", "--elastic_training"}, "--elastic_training"},
  };
  for (const auto& [arguments, reason] : cases) {
    const std::string error = plan_error(arguments, cluster());
    EXPECT_NE(error.find(reason), std::string::npos) << error;
  }
  EXPECT_NE(plan_error({"--num_nodes", "2"}, machine(0)).find("needs a hostfile"), std::string::npos);
  EXPECT_EQ(make_launch_plan(options({"--hostfile", "missing"}), machine(0)).warnings.size(), 1u);
  EXPECT_NE(plan_error({"--elastic_training", "--min_elastic_nodes", "4"}, cluster()).find("there are 3 machines"),
            std::string::npos);
}

/// The process of a rank on this machine, as the launcher makes it.
ProcessSpec local_rank(const LauncherOptions& parsed, const MachineFacts& facts, int rank,
                       const std::string& python = "python3") {
  const LaunchPlan plan = make_launch_plan(parsed, facts);
  const RankSettings settings{python, plan.master_addr, plan.master_port, plan.visible_devices, 0};
  return rank_process(parsed, settings, {rank, plan.ranks, rank, plan.local_size(), 0, 1}, facts);
}

TEST(RankProcess, HasTheCustomaryEnvironmentAndCommand) {
  const LauncherOptions parsed = options({"--num_gpus", "2", "--master_port", "1234", "--master_addr", "10.0.0.1"});
  const MachineFacts facts = machine(2, {{"PATH", "/bin"}, {"RANK", "77"}});
  const ProcessSpec spec = local_rank(parsed, facts, 1, "/venv/bin/python3");
  EXPECT_EQ(spec.arguments, (Strings{"/venv/bin/python3", "-u", "train.py", "--local_rank=1", "--lr=1"}));
  const std::map<std::string, std::string> expected = {
      {"RANK", "1"},           {"LOCAL_RANK", "1"},         {"WORLD_SIZE", "2"},      {"LOCAL_SIZE", "2"},
      {"CROSS_RANK", "0"},     {"CROSS_SIZE", "1"},         {"PATH", "/bin"},         {"CUDA_VISIBLE_DEVICES", "0,1"},
      {"MASTER_PORT", "1234"}, {"MASTER_ADDR", "10.0.0.1"}, {"OMP_NUM_THREADS", "4"}, {"DEEPSPEED_RESTART_COUNT", "0"}};
  for (const auto& [name, value] : expected) EXPECT_EQ(value_of(spec, name), value) << name;
  EXPECT_EQ(spec.environment.size(), expected.size());
}

TEST(RankProcess, FollowsModuleNoPythonAndNoLocalRank) {
  const MachineFacts facts = machine(0);
  const auto arguments = [&](const Strings& given) {
    const LauncherOptions parsed = options(given);
    return local_rank(parsed, facts, 0).arguments;
  };
  EXPECT_EQ(arguments({"--module"}), (Strings{"python3", "-u", "-m", "train.py", "--local_rank=0", "--lr=1"}));
  EXPECT_EQ(arguments({"--no_python"}), (Strings{"train.py", "--local_rank=0", "--lr=1"}));
  EXPECT_EQ(arguments({"--no_local_rank"}), (Strings{"python3", "-u", "train.py", "--lr=1"}));
  const Strings sourced = arguments({"--venv_script", "/v/activate"});
  EXPECT_EQ(Strings(sourced.begin() + 3, sourced.begin() + 5), (Strings{"/v/activate", "python"}));
}

TEST(RankProcess, LeavesThreadsToTheUserAndToASingleRank) {
  const auto threads = [](const Strings& given, const MachineFacts& facts) {
    const LauncherOptions parsed = options(given);
    return value_of(local_rank(parsed, facts, 0), "OMP_NUM_THREADS");
  };
  EXPECT_EQ(threads({"--num_gpus", "2"}, machine(0, {{"OMP_NUM_THREADS", "5"}})), "5");
  EXPECT_EQ(threads({}, machine(0)), "(unset)");
  EXPECT_EQ(threads({"--num_gpus", "20"}, machine(0)), "1");
}

TEST(RankProcess, SharesTheCoresOutWhenBinding) {
  const LauncherOptions parsed = options({"--num_gpus", "3", "--bind_core_list", "0-6"});
  const MachineFacts facts = machine(0);
  const ProcessSpec spec = local_rank(parsed, facts, 2);
  EXPECT_EQ(spec.cpus, (std::vector<int>{4, 5}));
  EXPECT_EQ(value_of(spec, "OMP_NUM_THREADS"), "2");
  const LauncherOptions both = options({"--num_gpus", "2", "--bind_cores_to_rank"});
  EXPECT_EQ(local_rank(both, facts, 1).cpus, (std::vector<int>{4, 5, 6, 7}));
  EXPECT_EQ(local_rank(both, facts, 1).memory_node, 1);
  EXPECT_THROW(make_launch_plan(options({"--num_gpus", "9", "--bind_cores_to_rank"}), facts), ConfigError);
  EXPECT_THROW(make_launch_plan(options({"--bind_core_list", "6-9"}), facts), ConfigError);
  EXPECT_THROW(make_launch_plan(options({"--bind_cores_to_rank"}), machine(0, {{"KMP_AFFINITY", "x"}})), ConfigError);
}

}  // namespace
}  // namespace deepscale
