#include "comm/init.h"

#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "comm/process_group_gloo.h"
#include "comm/run_ranks.h"
#include "deepscale/error.h"

namespace deepscale {
namespace {

RankEnvironment parse(const std::map<std::string, std::string>& variables) {
  return read_rank_environment([&](const std::string& name) -> std::optional<std::string> {
    const auto found = variables.find(name);
    if (found == variables.end()) return std::nullopt;
    return found->second;
  });
}

std::string message_of(const std::map<std::string, std::string>& variables) {
  try {
    parse(variables);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "(no error)";
}

TEST(RankEnvironment, NothingSetIsAWorldOfOne) {
  const RankEnvironment at = parse({});
  EXPECT_EQ(at.rank, 0);
  EXPECT_EQ(at.world_size, 1);
}

TEST(RankEnvironment, ReadsWhatLaunchersSet) {
  const RankEnvironment at = parse(
      {{"RANK", "5"}, {"WORLD_SIZE", "8"}, {"LOCAL_RANK", "1"}, {"MASTER_ADDR", "node0"}, {"MASTER_PORT", "29501"}});
  EXPECT_EQ(at.rank, 5);
  EXPECT_EQ(at.world_size, 8);
  EXPECT_EQ(at.local_rank, 1);
  EXPECT_EQ(at.master_address, "node0");
  EXPECT_EQ(at.master_port, 29501);
  EXPECT_FALSE(at.store_is_served);
}

TEST(RankEnvironment, ReadsOpenMpiAndSlurm) {
  EXPECT_EQ(parse({{"OMPI_COMM_WORLD_RANK", "2"},
                   {"OMPI_COMM_WORLD_SIZE", "4"},
                   {"OMPI_COMM_WORLD_LOCAL_RANK", "2"},
                   {"MASTER_ADDR", "a"}})
                .local_rank,
            2);
  EXPECT_EQ(parse({{"SLURM_PROCID", "3"}, {"SLURM_STEP_NUM_TASKS", "4"}, {"MASTER_ADDR", "a"}}).rank, 3);
}

TEST(RankEnvironment, TheAgentOfTorchrunServesTheStore) {
  const RankEnvironment at = parse({{"RANK", "0"},
                                    {"WORLD_SIZE", "2"},
                                    {"MASTER_ADDR", "a"},
                                    {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                                    {"TORCHELASTIC_RESTART_COUNT", "3"}});
  EXPECT_TRUE(at.store_is_served);
  EXPECT_EQ(at.attempt, 3);
}

TEST(RankEnvironment, ContradictionsNameTheVariable) {
  EXPECT_NE(message_of({{"RANK", "1"}}).find("RANK is set and WORLD_SIZE is not"), std::string::npos);
  EXPECT_NE(message_of({{"WORLD_SIZE", "2"}}).find("RANK is not set"), std::string::npos);
  EXPECT_NE(message_of({{"RANK", "2"}, {"WORLD_SIZE", "2"}}).find("RANK=2 must lie in 0..WORLD_SIZE-1"),
            std::string::npos);
  EXPECT_NE(message_of({{"RANK", "x"}, {"WORLD_SIZE", "2"}}).find("variable RANK: expected an integer, got 'x'"),
            std::string::npos);
  EXPECT_NE(message_of({{"RANK", "0"}, {"WORLD_SIZE", "2"}}).find("MASTER_ADDR is not set"), std::string::npos);
  EXPECT_NE(message_of({{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "a"}, {"MASTER_PORT", "70000"}})
                .find("MASTER_PORT must lie in"),
            std::string::npos);
}

/// Ranks as threads, each with what its process would find in the environment; the store is served on a free port.
void run_worlds(bool use_host, const std::function<void(const Communicator&)>& body) {
  constexpr int kRanks = 2;
  TorchStore::TcpOptions served;
  served.is_server = true;
  const auto server = TorchStore::tcp(served);
  run_rank_threads(kRanks, [&](int rank) {
    RankEnvironment at;
    at.rank = at.local_rank = rank;
    at.world_size = kRanks;
    at.master_port = server->port();
    at.store_is_served = true;
    InitOptions options;
    options.timeout = std::chrono::seconds(20);
    options.use_host = use_host;
    body(make_world(at, options));
  });
}

TEST(MakeWorld, RanksOfOneMachineShareMemory) {
  run_worlds(/*use_host=*/true, [](const Communicator& comm) {
    EXPECT_EQ(comm.description(), "host, 2 ranks");
    const at::Tensor data = at::full({100}, static_cast<double>(comm.rank() + 1));
    comm.all_reduce(data, ReduceOp::kSum).wait();
    EXPECT_EQ(data.sum().item<float>(), 300.0F);
  });
}

TEST(MakeWorld, WithoutSharedMemoryGlooServes) {
  run_worlds(/*use_host=*/false, [](const Communicator& comm) {
    EXPECT_EQ(comm.description(), "gloo, 2 ranks");
    const at::Tensor data = at::full({100}, static_cast<double>(comm.rank() + 1));
    comm.all_reduce(data, ReduceOp::kAvg).wait();
    EXPECT_EQ(data.sum().item<float>(), 150.0F);
    EXPECT_EQ(comm.timeout(), std::chrono::seconds(20));
    comm.barrier();
  });
}

TEST(MakeWorld, ARankThatNeverComesIsAnErrorWithinTheTimeout) {
  RankEnvironment at;
  at.world_size = 2;
  TorchStore::TcpOptions served;
  served.is_server = true;
  const auto server = TorchStore::tcp(served);
  at.master_port = server->port();
  at.store_is_served = true;
  InitOptions options;
  options.timeout = std::chrono::milliseconds(300);
  EXPECT_THROW(make_world(at, options), CommError);
}

}  // namespace
}  // namespace deepscale
