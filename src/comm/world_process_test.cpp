// world_from_environment() between processes: this program starts itself once per rank, with a launcher's variables.
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "base/environment.h"
#include "comm/init.h"
#include "platform/local_port.h"
#include "platform/machine.h"
#include "platform/process.h"

namespace deepscale {
namespace {

using Variables = std::map<std::string, std::string>;

std::vector<std::string> environment_with(const Variables& variables) {
  std::vector<std::string> result;
  for (const auto& [name, value] : environment_variables()) {
    if (!variables.contains(name)) result.push_back(name + "=" + value);
  }
  for (const auto& [name, value] : variables) result.push_back(name + "=" + value);
  return result;
}

/// Runs the (otherwise disabled) test `worker` of this program on `ranks` processes; true when all succeed.
bool run_processes(const std::string& worker, int ranks, Variables variables) {
  const LocalPort port = LocalPort::claim_any();
  variables["WORLD_SIZE"] = std::to_string(ranks);
  variables["MASTER_ADDR"] = "127.0.0.1";
  variables["MASTER_PORT"] = std::to_string(port.number());
  ProcessTree tree;
  for (int rank = 0; rank < ranks; ++rank) {
    variables["RANK"] = variables["LOCAL_RANK"] = std::to_string(rank);
    ProcessSpec spec;
    spec.arguments = {testing::internal::GetArgvs()[0], "--gtest_also_run_disabled_tests", "--gtest_filter=" + worker};
    spec.environment = environment_with(variables);
    tree.start(spec);
  }
  bool ok = true;
  for (int ended = 0; ended < ranks;) {
    const ProcessEvent event = tree.wait(std::chrono::seconds(60));
    if (event.kind != ProcessEvent::Kind::kExited) return false;
    ok = ok && event.status.ok();
    ++ended;
  }
  return ok;
}

void check_world() {
  const Communicator world = world_from_environment();
  EXPECT_EQ(std::to_string(world.rank()), environment("RANK").value_or(""));
  EXPECT_EQ(std::to_string(world.size()), environment("WORLD_SIZE").value_or(""));
  EXPECT_EQ(world.shares_memory(), environment("DEEPSCALE_HOST_COMM").value_or("1") == "1") << world.description();
  const at::Tensor data = at::full({1000}, static_cast<double>(world.rank() + 1));
  world.all_reduce(data, ReduceOp::kSum, "first").wait();
  EXPECT_EQ(data.min().item<float>(), static_cast<float>(world.size() * (world.size() + 1)) / 2);
  const at::Tensor mine = world.allocate(10, at::kFloat, at::kCPU);
  mine.fill_(world.rank());
  const at::Tensor all = world.allocate(10 * world.size(), at::kFloat, at::kCPU);
  world.all_gather(mine, all).wait();
  for (int rank = 0; rank < world.size(); ++rank) EXPECT_EQ(all[10 * rank].item<int>(), rank);
  world.barrier("last");
}

TEST(WorkerRank, DISABLED_MeetsTheOthers) {
  check_world();
}

TEST(WorldFromEnvironment, ProcessesOfOneMachineMeetInSharedMemory) {
  EXPECT_TRUE(run_processes("WorkerRank.DISABLED_MeetsTheOthers", 2, {}));
  EXPECT_TRUE(run_processes("WorkerRank.DISABLED_MeetsTheOthers", 3, {}));
}

TEST(WorldFromEnvironment, ProcessesMeetThroughTorchsOwnGloo) {
  EXPECT_TRUE(run_processes("WorkerRank.DISABLED_MeetsTheOthers", 2, {{"DEEPSCALE_HOST_COMM", "0"}}));
}

}  // namespace
}  // namespace deepscale
