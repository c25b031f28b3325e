#include "platform/topology.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <thread>

#include "deepscale/error.h"
#include "platform/machine.h"

namespace deepscale {
namespace {

const std::string kRoot = "/sys/devices/system/";

/// Files of a machine, as `cat` shows them.
class RecordedMachine {
 public:
  void file(const std::string& path, const std::string& text) { files_[kRoot + path] = text; }
  void cpu(int id, const std::string& siblings, int package) {
    const std::string folder = "cpu/cpu" + std::to_string(id) + "/topology/";
    file(folder + "thread_siblings_list", siblings + "\n");
    file(folder + "physical_package_id", std::to_string(package) + "\n");
  }
  void node(int id, const std::string& cpus, int64_t kilobytes) {
    const std::string folder = "node/node" + std::to_string(id);
    const std::string name = "Node " + std::to_string(id);
    file(folder + "/cpulist", cpus + "\n");
    file(folder + "/meminfo", "\n" + name + " MemTotal:       " + std::to_string(kilobytes) + " kB\n" + name +
                                  " MemFree:         1000 kB\n");
  }
  [[nodiscard]] CpuTopology topology() const {
    return sysfs_topology([this](const std::string& path) -> std::optional<std::string> {
      const auto found = files_.find(path);
      if (found == files_.end()) return std::nullopt;
      return found->second;
    });
  }

 private:
  std::map<std::string, std::string> files_;
};

/// Two packages of 4 cores with 2 threads each, numbered as Intel servers do: 0-3 and 8-11 in node 0.
RecordedMachine two_nodes_with_threads() {
  RecordedMachine machine;
  machine.file("cpu/online", "0-15\n");
  for (int core = 0; core < 8; ++core) {
    const std::string siblings = std::to_string(core) + "," + std::to_string(core + 8);
    machine.cpu(core, siblings, core / 4);
    machine.cpu(core + 8, siblings, core / 4);
  }
  machine.file("node/online", "0-1\n");
  machine.node(0, "0-3,8-11", 1000);
  machine.node(1, "4-7,12-15", 2000);
  return machine;
}

/// Cores without hardware threads; node_of[i] is CPU i's node.
CpuTopology plain(const std::vector<int>& node_of) {
  CpuTopology topology;
  for (size_t i = 0; i < node_of.size(); ++i) {
    const int id = static_cast<int>(i);
    topology.cpus.push_back({.id = id, .core = id, .package = node_of[i], .node = node_of[i]});
  }
  for (int node = 0; node <= *std::max_element(node_of.begin(), node_of.end()); ++node)
    topology.nodes.push_back({node, 1});
  return topology;
}

std::vector<int> all_cpus(const CpuTopology& topology) {
  std::vector<int> ids;
  for (const LogicalCpu& cpu : topology.cpus) ids.push_back(cpu.id);
  return ids;
}

using Cpus = std::vector<int>;

TEST(CpuList, IsReadAsTheKernelWritesIt) {
  EXPECT_EQ(parse_cpu_list("0-3,8,10-11\n"), (Cpus{0, 1, 2, 3, 8, 10, 11}));
  EXPECT_EQ(parse_cpu_list("5"), Cpus{5});
  EXPECT_EQ(parse_cpu_list("\n"), Cpus{});
  for (const char* wrong : {"a", "1-", "-1", "3-1", "1,", ",1", "1 2", "0-99999999", "1,,2"}) {
    EXPECT_EQ(parse_cpu_list(wrong), std::nullopt) << wrong;
  }
}

TEST(Topology, OneNodeIsRead) {
  RecordedMachine machine;
  machine.file("cpu/online", "0-1\n");
  machine.cpu(0, "0-1", 0);
  machine.cpu(1, "0-1", 0);
  machine.file("node/online", "0\n");
  machine.node(0, "0-1", 24684100);
  const CpuTopology topology = machine.topology();
  EXPECT_EQ(topology.cpus, (std::vector<LogicalCpu>{{0, 0, 0, 0}, {1, 0, 0, 0}}));
  EXPECT_EQ(topology.nodes, (std::vector<NumaNode>{{0, int64_t{24684100} * 1024}}));
  EXPECT_EQ(topology.core_count(), 1);
  EXPECT_EQ(topology.package_count(), 1);
}

TEST(Topology, TwoNodesWithHardwareThreadsAreRead) {
  const CpuTopology topology = two_nodes_with_threads().topology();
  ASSERT_EQ(topology.cpus.size(), 16u);
  EXPECT_EQ(topology.cpus[5], (LogicalCpu{5, 5, 1, 1}));
  EXPECT_EQ(topology.cpus[13], (LogicalCpu{13, 5, 1, 1}));
  EXPECT_EQ(topology.core_count(), 8);
  EXPECT_EQ(topology.package_count(), 2);
  ASSERT_EQ(topology.nodes.size(), 2u);
  EXPECT_EQ(topology.nodes[1].memory_bytes, 2000 * 1024);
}

TEST(Topology, OfflineProcessorsAreLeftOut) {
  RecordedMachine machine = two_nodes_with_threads();
  machine.file("cpu/online", "0,2-3,8-9\n");
  machine.cpu(9, "9", 0);  // its sibling 1 is offline, so the kernel lists it alone
  const CpuTopology topology = machine.topology();
  EXPECT_EQ(all_cpus(topology), (Cpus{0, 2, 3, 8, 9}));
  EXPECT_EQ(topology.core_count(), 4);
  const auto shares = share_cores(topology, all_cpus(topology), 2);
  EXPECT_EQ(shares[0].cpus, (Cpus{0, 2}));
  EXPECT_EQ(shares[0].with_siblings, (Cpus{0, 2, 8}));
  EXPECT_EQ(shares[1].cpus, (Cpus{3, 9}));
}

TEST(Topology, AMachineThatTellsNothingIsSimple) {
  RecordedMachine machine;
  machine.file("cpu/online", "0-3\n");
  const CpuTopology topology = machine.topology();
  EXPECT_EQ(topology.core_count(), 4);
  EXPECT_EQ(topology.nodes.size(), 1u);
  EXPECT_TRUE(RecordedMachine().topology().cpus.empty());
}

TEST(Topology, MemoryWithoutProcessorsIsANode) {
  RecordedMachine machine = two_nodes_with_threads();
  machine.file("node/online", "0-2\n");
  machine.node(2, "", 5000);
  const CpuTopology topology = machine.topology();
  ASSERT_EQ(topology.nodes.size(), 3u);
  EXPECT_EQ(topology.nodes[2], (NumaNode{2, 5000 * 1024}));
}

TEST(ShareCores, EveryRankGetsPhysicalCoresOfOneNode) {
  const CpuTopology topology = two_nodes_with_threads().topology();
  const auto shares = share_cores(topology, all_cpus(topology), 4);
  ASSERT_EQ(shares.size(), 4u);
  EXPECT_EQ(shares[0].cpus, (Cpus{0, 1}));
  EXPECT_EQ(shares[0].with_siblings, (Cpus{0, 1, 8, 9}));
  EXPECT_EQ(shares[0].memory_node, 0);
  EXPECT_EQ(shares[1].cpus, (Cpus{2, 3}));
  EXPECT_EQ(shares[2].cpus, (Cpus{4, 5}));
  EXPECT_EQ(shares[3].cpus, (Cpus{6, 7}));
  EXPECT_EQ(shares[3].memory_node, 1);
}

TEST(ShareCores, NodesWhoseNumbersAlternateAreStillKeptApart) {
  const CpuTopology topology = plain({0, 1, 0, 1, 0, 1, 0, 1});
  const auto shares = share_cores(topology, all_cpus(topology), 2);
  EXPECT_EQ(shares[0].cpus, (Cpus{0, 2, 4, 6}));
  EXPECT_EQ(shares[1].cpus, (Cpus{1, 3, 5, 7}));
  EXPECT_EQ(shares[1].memory_node, 1);
}

TEST(ShareCores, OddNodesLeaveCoresUnusedRatherThanSplitARank) {
  const CpuTopology topology = plain({0, 0, 0, 0, 0, 1, 1, 1, 1, 1});
  const auto shares = share_cores(topology, all_cpus(topology), 4);
  EXPECT_EQ(shares[1].cpus, (Cpus{2, 3}));
  EXPECT_EQ(shares[2].cpus, (Cpus{5, 6}));
  EXPECT_EQ(shares[3].cpus, (Cpus{7, 8}));
  for (const CoreShare& share : shares) EXPECT_TRUE(share.memory_node.has_value());
}

TEST(ShareCores, FewRanksAreSpreadOverTheNodes) {
  const CpuTopology topology = plain({0, 0, 0, 0, 1, 1, 1});
  const auto shares = share_cores(topology, all_cpus(topology), 4);  // one core each
  const auto on_node_0 = std::count_if(shares.begin(), shares.end(), [](const auto& s) { return s.memory_node == 0; });
  EXPECT_EQ(on_node_0, 2);
}

TEST(ShareCores, ARankLargerThanANodeHasNoMemoryNode) {
  const CpuTopology topology = plain({0, 0, 1, 1, 2, 2});
  const auto one = share_cores(topology, all_cpus(topology), 1);
  EXPECT_EQ(one[0].cpus.size(), 6u);
  EXPECT_EQ(one[0].memory_node, std::nullopt);
  const auto two = share_cores(topology, all_cpus(topology), 2);
  EXPECT_EQ(two[0].cpus, (Cpus{0, 1, 2}));
  EXPECT_EQ(two[0].memory_node, std::nullopt);
}

TEST(ShareCores, OnlyUsableProcessorsAreShared) {
  const CpuTopology topology = two_nodes_with_threads().topology();
  const auto shares = share_cores(topology, Cpus{9, 10, 2, 3, 13}, 2);  // cores 1, 2, 3 of node 0 and 5 of node 1
  EXPECT_EQ(shares[0].cpus, (Cpus{2, 9}));
  EXPECT_EQ(shares[0].with_siblings, (Cpus{2, 9, 10}));
  EXPECT_EQ(shares[1].cpus, (Cpus{3, 13}));
  EXPECT_EQ(shares[1].memory_node, std::nullopt);
}

TEST(ShareCores, OneNodeNeedsNoMemoryBinding) {
  const CpuTopology topology = plain({0, 0});
  EXPECT_EQ(share_cores(topology, Cpus{0, 1}, 2)[0].memory_node, std::nullopt);
}

TEST(ShareCores, MoreRanksThanCoresAreRefused) {
  const CpuTopology topology = two_nodes_with_threads().topology();
  try {
    (void)share_cores(topology, all_cpus(topology), 9);
    ADD_FAILURE() << "nothing thrown";
  } catch (const ConfigError& error) {
    EXPECT_EQ(std::string(error.what()),
              "8 physical cores cannot be shared by 9 ranks; start fewer ranks or do not bind");
  }
  EXPECT_THROW((void)share_cores(topology, Cpus{}, 1), ConfigError);
  EXPECT_THROW((void)share_cores(topology, Cpus{0}, 0), ConfigError);
  EXPECT_THROW((void)share_cpu_list(topology, Cpus{0}, 2), ConfigError);
}

TEST(ShareCpuList, SharesTheUsersListAsItStands) {
  const CpuTopology topology = two_nodes_with_threads().topology();
  const auto shares = share_cpu_list(topology, Cpus{0, 8, 4, 5, 7}, 2);
  EXPECT_EQ(shares[0].cpus, (Cpus{0, 8}));
  EXPECT_EQ(shares[0].memory_node, 0);
  EXPECT_EQ(shares[1].cpus, (Cpus{4, 5}));
  EXPECT_EQ(shares[1].with_siblings, (Cpus{4, 5}));
  EXPECT_EQ(shares[1].memory_node, 1);
}

TEST(Topology, OfThisMachineHoldsEveryUsableProcessor) {
  const CpuTopology topology = cpu_topology();
  const Cpus ids = all_cpus(topology);
  for (const int cpu : usable_cpus()) EXPECT_TRUE(std::binary_search(ids.begin(), ids.end(), cpu)) << cpu;
  ASSERT_FALSE(topology.nodes.empty());
  int64_t memory = 0;
  for (const NumaNode& node : topology.nodes) memory += node.memory_bytes;
  EXPECT_GT(memory, int64_t{64} << 20);
  EXPECT_EQ(share_cores(topology, usable_cpus(), 1).size(), 1u);
}

TEST(Binding, AThreadRunsWhereItIsBound) {
  const Cpus all = usable_cpus();
  std::thread([&] {
    bind_thread(Cpus{all.back()});
#ifndef _WIN32
    EXPECT_EQ(usable_cpus(), Cpus{all.back()});  // of the calling thread there
#endif
    EXPECT_THROW(bind_thread(Cpus{}), IoError);
    EXPECT_THROW(bind_thread(Cpus{-1}), IoError);
    EXPECT_THROW(bind_thread(Cpus{60000}), IoError);
  }).join();
  EXPECT_EQ(usable_cpus(), all);
}

TEST(Binding, AProcessIsBoundWithAllItsThreads) {
  const Cpus all = usable_cpus();
  bind_process(Cpus{all.back()});
  EXPECT_EQ(usable_cpus(), Cpus{all.back()});
  Cpus in_thread;
  std::thread([&] { in_thread = usable_cpus(); }).join();
  EXPECT_EQ(in_thread, Cpus{all.back()});
  bind_process(all);
  EXPECT_EQ(usable_cpus(), all);
  EXPECT_THROW(bind_process(Cpus{}), IoError);
}

TEST(Binding, MemoryComesFromANodeThatExists) {
  std::thread([] {
    EXPECT_FALSE(bind_memory(-1));
    EXPECT_FALSE(bind_memory(1000));
    if (bind_memory(cpu_topology().nodes[0].id)) {
      std::vector<char> pages(1 << 22, 1);
      EXPECT_EQ(std::accumulate(pages.begin(), pages.end(), 0), 1 << 22);
    }
  }).join();
}

}  // namespace
}  // namespace deepscale
