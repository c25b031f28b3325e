#include "launcher/backend.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/error.h"
#include "launcher/agent_plan.h"

namespace deepscale {
namespace {

using Strings = std::vector<std::string>;

const AgentCommand kAgent{"/opt/my env/bin/deepspeed", "PLAN"};

LauncherOptions options(Strings arguments) {
  arguments.emplace_back("train.py");
  return parse_command_line(arguments).options;
}

LaunchPlan plan_of(Backend backend) {
  LaunchPlan plan;
  plan.hosts = {{"a", {"0", "1"}}, {"b", {"0", "1"}}};
  plan.backend = backend;
  plan.nodes = 2;
  plan.ranks = 4;
  return plan;
}

Strings rank_words(Backend backend, const Strings& given, bool has_eth0 = false) {
  return rank_starter(options(given), plan_of(backend), {{"NCCL_DEBUG", "INFO"}, {"X", "a,b"}}, "hosts", "list",
                      has_eth0, kAgent)
      .arguments;
}

/// Whether the words appear in this order, one after the other.
bool contains(const Strings& words, const Strings& wanted) {
  return std::search(words.begin(), words.end(), wanted.begin(), wanted.end()) != words.end();
}

TEST(Backend, GivesSshOneLineForTheRemoteShell) {
  const BackendProcess process =
      ssh_agent(options({"--ssh_port", "2222", "--launcher_args", "-i 'my key'"}), "a", kAgent, 1);
  EXPECT_EQ(process.arguments, (Strings{"ssh", "-n", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-p", "2222",
                                        "-i", "my key", "a", "'/opt/my env/bin/deepspeed' --agent PLAN"}));
  EXPECT_EQ(process.agents, std::vector<int>{1});
}

TEST(Backend, LetsPdshNumberTheHosts) {
  const BackendProcess process = pdsh_agents(options({"--ssh_port", "22"}), plan_of(Backend::kPdsh), kAgent);
  EXPECT_EQ(process.arguments, (Strings{"pdsh", "-R", "ssh", "-S", "-f", "1024", "-w", "a,b",
                                        "'/opt/my env/bin/deepspeed' --agent PLAN --agent_index %n"}));
  EXPECT_NE(process.variables.at("PDSH_SSH_ARGS_APPEND").find("-p 22"), std::string::npos);
}

TEST(Backend, StartsEveryRankThroughOpenMpi) {
  const Strings words = rank_words(Backend::kOpenMpi, {"--launcher_args", "--map-by node"}, true);
  EXPECT_TRUE(contains(words, {"-n", "4", "-hostfile", "hosts", "--mca", "btl", "^openib"}));
  EXPECT_TRUE(contains(words, {"btl_tcp_if_include", "eth0", "--map-by", "node", "-x", "NCCL_DEBUG=INFO"}));
  EXPECT_TRUE(contains(words, {"/opt/my env/bin/deepspeed", "--agent", "PLAN"}));
  EXPECT_FALSE(contains(rank_words(Backend::kOpenMpi, {}), {"eth0"})) << "there is no such interface here";
  EXPECT_FALSE(
      contains(rank_words(Backend::kOpenMpi, {"--launcher_args", "--mca btl_tcp_if_include ib0"}, true), {"eth0"}));
}

TEST(Backend, StartsEveryRankThroughTheMpichFamily) {
  EXPECT_TRUE(contains(rank_words(Backend::kMpich, {}),
                       {"-n", "4", "-ppn", "2", "-genv", "NCCL_DEBUG=INFO", "-genv", "X=a,b", "-hosts", "a,b"}));
  EXPECT_TRUE(contains(rank_words(Backend::kMvapich, {}),
                       {"mpirun", "-np", "4", "-ppn", "2", "--hostfile", "list", "-env", "NCCL_DEBUG=INFO"}));
  const Strings intel = rank_words(Backend::kImpi, {});
  EXPECT_TRUE(contains(intel, {"-genv", "I_MPI_PIN", "0", "-hosts", "a,b", "-n", "1", "-env", "RANK", "0"}));
  EXPECT_TRUE(contains(intel, {"PLAN", ":", "-n", "1", "-env", "RANK", "3", "-env", "LOCAL_RANK", "1"}));
  EXPECT_EQ(std::count(intel.begin(), intel.end(), "PLAN"), 4);
}

TEST(Backend, StartsEveryRankThroughSlurm) {
  const Strings all = rank_words(Backend::kSlurm, {"--comment", "my job"});
  EXPECT_TRUE(contains(all, {"srun", "-n", "4", "--comment", "my job", "--export=ALL,NCCL_DEBUG=INFO"}))
      << "a value with a comma would end the list";
  EXPECT_TRUE(contains(rank_words(Backend::kSlurm, {"--include", "a@b"}), {"--nodelist", "a,b", "--nodes", "2"}));
  const Strings counted = rank_words(Backend::kSlurm, {"--num_nodes", "2", "--num_gpus", "2"});
  EXPECT_TRUE(contains(counted, {"--nodes", "2", "--ntasks-per-node", "2", "--gpus-per-node", "2"}));
  LaunchPlan cpu = plan_of(Backend::kSlurm);
  cpu.cpu_only = true;
  const Strings without = rank_starter(options({"--num_gpus", "2"}), cpu, {}, "", "", false, kAgent).arguments;
  EXPECT_FALSE(contains(without, {"--gpus-per-node"}));
}

TEST(AgentPlan, SurvivesTheCommandLine) {
  AgentPlan plan;
  plan.token = "secret";
  plan.control_addresses = {"10.0.0.1", "::1"};
  plan.control_port = 4711;
  plan.index = 3;
  plan.hosts = {{"a", {"0", "2"}}, {"b", {"1"}}};
  plan.restart_count = 2;
  plan.python = "/usr/bin/python3";
  plan.working_directory = "/my work";
  plan.variables = {{"X", "a\nb\"c"}, {"Y", "\xC3\xA9"}};
  plan.options = parse_command_line({"--module", "--log_dir", "logs", "--master_port", "77", "--bind_core_list", "0-3",
                                     "pkg.train", "--a b", "", "$HOME"})
                     .options;
  const std::string text = encode_agent_plan(plan);
  EXPECT_EQ(text.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"),
            std::string::npos);
  const AgentPlan back = decode_agent_plan(text);
  EXPECT_EQ(back.token, plan.token);
  EXPECT_EQ(back.control_addresses, plan.control_addresses);
  EXPECT_EQ(back.control_port, 4711);
  EXPECT_EQ(back.index, 3);
  EXPECT_EQ(back.hosts, plan.hosts);
  EXPECT_EQ(back.restart_count, 2);
  EXPECT_EQ(back.working_directory, plan.working_directory);
  EXPECT_EQ(back.variables, plan.variables);
  EXPECT_TRUE(back.options.module);
  EXPECT_EQ(back.options.master_port, 77);
  EXPECT_EQ(back.options.log_dir, "logs");
  EXPECT_EQ(back.options.bind_core_list, "0-3");
  EXPECT_EQ(back.options.script_arguments, plan.options.script_arguments);
}

TEST(AgentPlan, RefusesWhatIsNoPlan) {
  for (const std::string& text : {std::string("x"), std::string("!!"), std::string(), encode_agent_plan({}).substr(8),
                                  encode_agent_plan({}).substr(0, 40)}) {
    EXPECT_THROW(decode_agent_plan(text), ConfigError) << text;
  }
}

}  // namespace
}  // namespace deepscale
