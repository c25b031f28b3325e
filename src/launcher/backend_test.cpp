#include "launcher/backend.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/error.h"
#include "launcher/agent_plan.h"

namespace deepscale {
namespace {

using Strings = std::vector<std::string>;

const AgentCommand kAgent{"/opt/my env/bin/deepspeed", "TICKET", "SECRET"};

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
  EXPECT_EQ(process.arguments, (Strings{"ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-p", "2222", "-i",
                                        "my key", "a", "'/opt/my env/bin/deepspeed' --agent TICKET"}));
  EXPECT_EQ(process.agents, std::vector<int>{1});
  EXPECT_EQ(process.input, "SECRET\n");
}

TEST(Backend, LetsPdshNumberTheHosts) {
  const BackendProcess process = pdsh_agents(options({"--ssh_port", "22"}), plan_of(Backend::kPdsh), "-F mine", kAgent);
  EXPECT_EQ(process.arguments,
            (Strings{"pdsh", "-R", "ssh", "-S", "-f", "1024", "-w", "a,b",
                     "'/opt/my env/bin/deepspeed' --agent TICKET --agent_token SECRET --agent_index %n"}));
  const std::string arguments = process.variables.at("PDSH_SSH_ARGS_APPEND");
  EXPECT_TRUE(arguments.starts_with("-F mine ") && arguments.ends_with(" -p 22")) << arguments;
}

TEST(Backend, StartsEveryRankThroughOpenMpi) {
  const Strings words = rank_words(Backend::kOpenMpi, {"--launcher_args", "--map-by node"}, true);
  EXPECT_TRUE(contains(words, {"-n", "4", "-hostfile", "hosts", "--mca", "btl", "^openib"}));
  EXPECT_TRUE(contains(
      words, {"btl_tcp_if_include", "eth0", "--map-by", "node", "-x", "DEEPSCALE_RUN_TOKEN", "-x", "NCCL_DEBUG"}));
  EXPECT_TRUE(contains(words, {"/opt/my env/bin/deepspeed", "--agent", "TICKET"}));
  EXPECT_FALSE(contains(rank_words(Backend::kOpenMpi, {}), {"eth0"})) << "there is no such interface here";
  EXPECT_FALSE(
      contains(rank_words(Backend::kOpenMpi, {"--launcher_args", "--mca btl_tcp_if_include ib0"}, true), {"eth0"}));
}

TEST(Backend, StartsEveryRankThroughTheMpichFamily) {
  EXPECT_TRUE(contains(rank_words(Backend::kMpich, {}),
                       {"-n", "4", "-ppn", "2", "-genvlist", "DEEPSCALE_RUN_TOKEN,NCCL_DEBUG,X", "-hosts", "a,b"}));
  EXPECT_TRUE(contains(rank_words(Backend::kMvapich, {}), {"mpirun", "-np", "4", "-ppn", "2", "--hostfile", "list",
                                                           "-genvlist", "DEEPSCALE_RUN_TOKEN,NCCL_DEBUG,X"}));
  const Strings intel = rank_words(Backend::kImpi, {});
  EXPECT_TRUE(contains(intel, {"-genv", "I_MPI_PIN", "0", "-hosts", "a,b", "-n", "1", "-env", "RANK", "0"}));
  EXPECT_TRUE(contains(intel, {"TICKET", ":", "-n", "1", "-env", "RANK", "3", "-env", "LOCAL_RANK", "1"}));
  EXPECT_EQ(std::count(intel.begin(), intel.end(), "TICKET"), 4);
}

TEST(Backend, StartsEveryRankThroughSlurm) {
  const Strings all = rank_words(Backend::kSlurm, {"--comment", "my job", "--account", "physics"});
  EXPECT_TRUE(contains(all, {"srun", "-n", "4", "--comment", "my job", "--account", "physics", "--export=ALL"}));
  EXPECT_TRUE(contains(rank_words(Backend::kSlurm, {"--include", "a@b"}), {"--nodelist", "a,b", "--nodes", "2"}));
  const Strings counted = rank_words(Backend::kSlurm, {"--num_nodes", "2", "--num_gpus", "2"});
  EXPECT_TRUE(contains(counted, {"--nodes", "2", "--ntasks-per-node", "2", "--gpus-per-node", "2"}));
  LaunchPlan cpu = plan_of(Backend::kSlurm);
  cpu.cpu_only = true;
  const Strings without = rank_starter(options({"--num_gpus", "2"}), cpu, {}, "", "", false, kAgent).arguments;
  EXPECT_FALSE(contains(without, {"--gpus-per-node"}));
}

TEST(Backend, KeepsSecretsOffTheCommandLine) {
  for (const Backend backend :
       {Backend::kOpenMpi, Backend::kMpich, Backend::kImpi, Backend::kMvapich, Backend::kSlurm}) {
    const BackendProcess process =
        rank_starter(options({}), plan_of(backend), {{"API_KEY", "hidden"}}, "", "", false, kAgent);
    for (const std::string& word : process.arguments)
      EXPECT_TRUE(word.find("hidden") == std::string::npos && word.find("SECRET") == std::string::npos) << word;
    EXPECT_EQ(process.variables.at("API_KEY"), "hidden");
    EXPECT_EQ(process.variables.at(kTokenVariable), "SECRET");
  }
  EXPECT_EQ(local_agent(kAgent, 0).variables.at(kTokenVariable), "SECRET");
}

TEST(AgentTicket, SurvivesTheCommandLine) {
  AgentTicket ticket;
  ticket.run = "run";
  ticket.addresses = {"10.0.0.1", "::1"};
  ticket.port = 4711;
  ticket.peer_timeout_s = 7;
  ticket.index = 3;
  ticket.one_rank = true;
  const std::string text = encode_ticket(ticket);
  EXPECT_EQ(text.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"),
            std::string::npos);
  const AgentTicket back = decode_ticket(text);
  EXPECT_EQ(back.run, "run");
  EXPECT_EQ(back.addresses, ticket.addresses);
  EXPECT_EQ(back.port, 4711);
  EXPECT_EQ(back.peer_timeout_s, 7);
  EXPECT_EQ(back.index, 3);
  EXPECT_TRUE(back.one_rank);
  for (const std::string& bad :
       {std::string("x"), std::string("!!"), std::string(), text.substr(8), text.substr(0, 40)})
    EXPECT_THROW(decode_ticket(bad), ConfigError) << bad;
}

TEST(AgentPlan, SurvivesTheControlChannel) {
  AgentPlan plan;
  plan.slots = {"0", "2"};
  plan.first_rank = 5;
  plan.restart_count = 2;
  plan.python = "/usr/bin/python3";
  plan.working_directory = "/my work";
  plan.kill_grace_ms = 4500;
  plan.variables = {{"X", "a\nb\"c"}, {"Y", "\xC3\xA9"}, {"Z", "no UTF-8: \xFF"}};
  plan.options = parse_command_line({"--module", "--log_dir", "logs", "--master_port", "77", "--bind_core_list", "0-3",
                                     "pkg.train", "--a b", "", "$HOME"})
                     .options;
  const std::string text = encode_plan(plan);
  EXPECT_EQ(text.find('\n'), std::string::npos);
  const AgentPlan back = decode_plan(text);
  EXPECT_EQ(back.slots, plan.slots);
  EXPECT_EQ(back.first_rank, 5);
  EXPECT_EQ(back.restart_count, 2);
  EXPECT_EQ(back.kill_grace_ms, 4500);
  EXPECT_EQ(back.python, plan.python);
  EXPECT_EQ(back.working_directory, plan.working_directory);
  EXPECT_EQ(back.variables, plan.variables);
  EXPECT_TRUE(back.options.module);
  EXPECT_EQ(back.options.master_port, 77);
  EXPECT_EQ(back.options.log_dir, "logs");
  EXPECT_EQ(back.options.bind_core_list, "0-3");
  EXPECT_EQ(back.options.script_arguments, plan.options.script_arguments);
  for (const std::string& bad : {std::string(), std::string("[]"), std::string("{}"), text.substr(0, 40)})
    EXPECT_THROW(decode_plan(bad), ConfigError) << bad;
}

}  // namespace
}  // namespace deepscale
