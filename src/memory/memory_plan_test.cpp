#include "memory/memory_plan.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "memory/machine_limits.h"

namespace deepscale {
namespace {

constexpr int64_t kGib = int64_t{1} << 30;

MemoryPlan small_plan() {
  MemoryPlan plan;
  plan.ranks = 4;
  plan.ranks_per_host = 2;
  plan.add(PlannedState::kOptimizer, MemoryPlace::kHostPageable, 2 * kGib, "2 of float32");
  plan.add(PlannedState::kParameters, MemoryPlace::kDevice, kGib, "bfloat16");
  plan.add(PlannedState::kReduce, MemoryPlace::kHostPinned, kGib / 2);
  plan.add(PlannedState::kGradients, MemoryPlace::kShared, kGib / 4);
  plan.add(PlannedState::kMaster, MemoryPlace::kFile, 3 * kGib);
  plan.optimizer_path = "/disk/a";
  plan.optimizer_file_bytes = 3 * kGib;
  return plan;
}

MachineLimits roomy() {
  MachineLimits limits;
  limits.memory = {64 * kGib, 60 * kGib, ""};
  limits.disks = {{"/disk/a", "ext4 sda", 100 * kGib}};
  return limits;
}

TEST(MemoryPlanTest, RowsOfOneStateAndPlaceAreAdded) {
  MemoryPlan plan = small_plan();
  plan.add(PlannedState::kOptimizer, MemoryPlace::kHostPageable, kGib, "2 of float32");
  plan.add(PlannedState::kOptimizer, MemoryPlace::kHostPageable, 0, "nothing");
  ASSERT_EQ(plan.rows.size(), 5u);
  EXPECT_EQ(plan.bytes(PlannedState::kOptimizer), 3 * kGib);
  EXPECT_EQ(plan.rows.front().state, PlannedState::kParameters);
  EXPECT_EQ(plan.rows[3].remark, "2 of float32");
}

TEST(MemoryPlanTest, AHostHoldsItsRanksPinnedPageableAndSharedMemory) {
  const MemoryPlan plan = small_plan();
  EXPECT_EQ(plan.rank_memory_bytes(), 2 * kGib + kGib / 2 + kGib / 4);
  EXPECT_EQ(plan.host_memory_bytes(), 5 * kGib + kGib / 2);
  EXPECT_EQ(plan.bytes(MemoryPlace::kFile), 3 * kGib);
}

TEST(MachineLimitsTest, APlanThatFitsIsShortOfNothing) {
  EXPECT_TRUE(check_plan(small_plan(), roomy()).empty());
  EXPECT_TRUE(fits(small_plan(), roomy()));
}

TEST(MachineLimitsTest, EveryLimitIsNamedWithWhatIsMissing) {
  MachineLimits limits = roomy();
  limits.memory.available_bytes = 5 * kGib;
  limits.groups = {{4 * kGib, kGib, "memory.max of /sys/fs/cgroup/job"}};
  limits.process = {{"RLIMIT_AS", 2 * kGib, 0, true, ""}, {"RLIMIT_DATA", 3 * kGib, kGib, false, ""}};
  limits.device_bytes = kGib - 1;
  limits.shared_folder_bytes = kGib / 4;
  limits.shares_through_folder = true;
  limits.disks[0].available_bytes = 5 * kGib;
  std::map<std::string, int64_t> missing;
  for (const Shortage& shortage : check_plan(small_plan(), limits)) {
    EXPECT_TRUE(shortage.fatal);
    missing[shortage.resource] = shortage.missing_bytes();
  }
  const std::map<std::string, int64_t> expected = {{"memory of a device", 1},
                                                   {"main memory of the host", kGib / 2},
                                                   {"memory.max of /sys/fs/cgroup/job", 5 * kGib / 2},
                                                   {"RLIMIT_AS of a process", kGib},
                                                   {"RLIMIT_DATA of a process", kGib / 2},
                                                   {"/dev/shm", kGib / 4},
                                                   {"disk of nvme_path /disk/a", kGib}};
  EXPECT_EQ(missing, expected);
}

TEST(MachineLimitsTest, ALimitThatIsUsedUpLeavesNothing) {
  MachineLimits limits = roomy();
  limits.groups = {{4 * kGib, 5 * kGib, "memory.high"}};
  ASSERT_EQ(check_plan(small_plan(), limits).size(), 1u);
  EXPECT_EQ(check_plan(small_plan(), limits)[0].available_bytes, 0);
}

TEST(MachineLimitsTest, TheSharedFolderDoesNotLimitAnonymousSharedMemory) {
  MachineLimits limits = roomy();
  limits.shared_folder_bytes = 1;
  EXPECT_TRUE(check_plan(small_plan(), limits).empty());
}

TEST(MachineLimitsTest, FoldersOfOneDiskShareItsRoom) {
  MemoryPlan plan = small_plan();
  plan.param_path = "/disk/b";
  plan.param_file_bytes = 3 * kGib;
  MachineLimits limits = roomy();
  limits.disks = {{"/disk/a", "ext4 sda", 10 * kGib}, {"/disk/b", "ext4 sda", 10 * kGib}};
  const auto found = check_plan(plan, limits);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].resource, "disk of nvme_path /disk/a and /disk/b");
  EXPECT_EQ(found[0].missing_bytes(), 2 * kGib);
  limits.disks[1].identity = "ext4 sdb";
  EXPECT_TRUE(check_plan(plan, limits).empty());
}

TEST(MachineLimitsTest, FilesOfATmpfsAreMemory) {
  MemoryPlan plan = small_plan();
  MachineLimits limits = roomy();
  limits.memory.available_bytes = plan.host_memory_bytes() + 5 * kGib;  // and the files take 6
  EXPECT_TRUE(fits(plan, limits));
  limits.disks[0].in_memory = true;
  const auto found = check_plan(plan, limits);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].resource, "main memory of the host");
  EXPECT_EQ(found[0].missing_bytes(), kGib);
}

TEST(MachineLimitsTest, TooLittleLockableMemoryIsNotFatal) {
  MachineLimits limits = roomy();
  limits.lockable_bytes = 64 << 20;
  limits.how_to_lock_more = "raise it with ulimit -l";
  const auto found = check_plan(small_plan(), limits);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_FALSE(found[0].fatal);
  EXPECT_TRUE(fits(small_plan(), limits));
  EXPECT_EQ(describe(found),
            "memory that may be locked: 512.0 MiB needed, 64.0 MiB available, 448.0 MiB missing (works without, "
            "slower); raise it with ulimit -l\n");
}

TEST(MachineLimitsTest, ThisMachineHasMemoryAndADisk) {
  const MachineLimits limits = read_machine_limits({"", ".", "."});
  EXPECT_GT(limits.memory.total_bytes, 0);
  EXPECT_GT(limits.memory.available_bytes, 0);
  ASSERT_EQ(limits.disks.size(), 1u);
  EXPECT_GT(limits.disks[0].available_bytes, 0);
}

TEST(PlanTextTest, TheTableHasAColumnForEachPlaceInUse) {
  MemoryPlan plan = small_plan();
  plan.notes = {"activations are not included"};
  const std::string table = to_table(plan, roomy());
  const auto has = [&](const std::string& text) { return table.find(text) != std::string::npos; };
  EXPECT_TRUE(has("memory of each of 4 ranks, 2 on a host")) << table;
  EXPECT_TRUE(has("      device      pinned    pageable      shared        file\n")) << table;
  EXPECT_TRUE(
      has("optimizer states                     -           -       2.000           -           -  2 of float32"))
      << table;
  EXPECT_TRUE(has("a host (2 ranks)                 2.000       1.000       4.000       0.500       6.000\n")) << table;
  EXPECT_TRUE(has("note: activations are not included\n"));
  EXPECT_TRUE(has("device: 1.00 GiB of unknown memory free\n"));
}

TEST(PlanTextTest, JsonHasTheSameFigures) {
  MachineLimits limits = roomy();
  limits.groups = {{4 * kGib, 0, "memory.max"}};
  const auto json = nlohmann::json::parse(to_json(small_plan(), limits));
  EXPECT_EQ(json["host_bytes"]["pageable"], 4 * kGib);
  EXPECT_EQ(json["rank_bytes"]["device"], kGib);
  EXPECT_EQ(json["rows"].size(), 5u);
  EXPECT_EQ(json["rows"][0]["state"], "parameters");
  EXPECT_EQ(json["limits"]["device_bytes"], nullptr);
  EXPECT_EQ(json["fits"], false);
  EXPECT_EQ(json["shortages"][0]["missing_bytes"], kGib + kGib / 2);
}

}  // namespace
}  // namespace deepscale
