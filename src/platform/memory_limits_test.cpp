#include "platform/memory_limits.h"

#include <gtest/gtest.h>

#include <map>

#include "platform/cgroups.h"
#ifdef _WIN32
#include <windows.h>
#endif

namespace deepscale {
namespace {

using Files = std::map<std::string, std::string>;

TextReader reader(const Files& files) {
  return [&files](const std::string& path) -> std::optional<std::string> {
    const auto found = files.find(path);
    if (found == files.end()) return std::nullopt;
    return found->second;
  };
}

constexpr int64_t kGb = int64_t{1} << 30;
constexpr char kUnified[] =
    "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

/// systemd: a service inside a slice, limits on both and on a user's slice in between.
Files nested_version_2() {
  return {
      {"/proc/self/cgroup", "0::/user.slice/user-1000.slice/train.scope\n"},
      {"/proc/self/mountinfo", "23 1 0:21 / /sys rw - sysfs sysfs rw\n" + std::string(kUnified)},
      {"/sys/fs/cgroup/user.slice/memory.max", "17179869184\n"},
      {"/sys/fs/cgroup/user.slice/memory.current", "12884901888\n"},
      {"/sys/fs/cgroup/user.slice/memory.stat", "anon 100\nfile 200\ninactive_file 805306368\nactive_file 268435456\n"},
      {"/sys/fs/cgroup/user.slice/cpu.max", "350000 100000\n"},
      {"/sys/fs/cgroup/user.slice/user-1000.slice/memory.max", "max\n"},
      {"/sys/fs/cgroup/user.slice/user-1000.slice/memory.high", "max\n"},
      {"/sys/fs/cgroup/user.slice/user-1000.slice/cpu.max", "max 100000\n"},
      {"/sys/fs/cgroup/user.slice/user-1000.slice/train.scope/memory.max", "21474836480\n"},
      {"/sys/fs/cgroup/user.slice/user-1000.slice/train.scope/memory.high", "8589934592\n"},
      {"/sys/fs/cgroup/user.slice/user-1000.slice/train.scope/memory.current", "1073741824\n"},
      {"/sys/fs/cgroup/user.slice/user-1000.slice/train.scope/cpu.max", "400000 100000\n"},
  };
}

TEST(Cgroups, EveryAncestorOfVersion2Counts) {
  const Files files = nested_version_2();
  EXPECT_EQ(cgroup_folders(reader(files), ""),
            (std::vector<std::string>{"/sys/fs/cgroup/user.slice/user-1000.slice/train.scope",
                                      "/sys/fs/cgroup/user.slice/user-1000.slice", "/sys/fs/cgroup/user.slice",
                                      "/sys/fs/cgroup"}));
  const auto limits = cgroup_memory_limits(reader(files));
  ASSERT_EQ(limits.size(), 3u);
  EXPECT_EQ(limits[0].limit_bytes, 20 * kGb);
  EXPECT_EQ(limits[1].limit_bytes, 8 * kGb);
  EXPECT_EQ(limits[1].source, "memory.high of /sys/fs/cgroup/user.slice/user-1000.slice/train.scope");
  EXPECT_EQ(limits[2].limit_bytes, 16 * kGb);
  EXPECT_EQ(limits[2].used_bytes, 11 * kGb);      // without the cache that would be given back
  EXPECT_EQ(cgroup_cpu_count(reader(files)), 4);  // 3.5 of the outer slice
}

TEST(Cgroups, TheTightestLimitIsNotAlwaysTheSmallest) {
  const Files files = nested_version_2();
  const MemoryFacts facts = within_limits({64 * kGb, 40 * kGb, ""}, cgroup_memory_limits(reader(files)));
  EXPECT_EQ(facts.total_bytes, 8 * kGb);
  EXPECT_EQ(facts.available_bytes, 5 * kGb);  // 16 of the outer slice less 11 that others use
  EXPECT_EQ(facts.limited_by, "memory.high of /sys/fs/cgroup/user.slice/user-1000.slice/train.scope");
}

TEST(Cgroups, AContainerSeesItsOwnPartOfTheTree) {
  // A cgroup namespace: the path is "/", and the mount's root is where the limit stands.
  const Files own_namespace = {{"/proc/self/cgroup", "0::/\n"},
                               {"/proc/self/mountinfo", kUnified},
                               {"/sys/fs/cgroup/memory.max", "1073741824\n"}};
  ASSERT_EQ(cgroup_memory_limits(reader(own_namespace)).size(), 1u);
  EXPECT_EQ(cgroup_memory_limits(reader(own_namespace))[0].limit_bytes, kGb);
  // The host's namespace with the container's part bind-mounted (Docker on version 1).
  const Files host_namespace = {
      {"/proc/self/cgroup", "9:memory:/docker/abc/inner\n4:cpu,cpuacct:/docker/abc\n"},
      {"/proc/self/mountinfo",
       "40 30 0:33 /docker/abc /sys/fs/cgroup/memory ro,nosuid - cgroup cgroup rw,memory\n"
       "41 30 0:34 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro,nosuid master:15 - cgroup cgroup rw,cpu,cpuacct\n"},
      {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "2147483648\n"},
      {"/sys/fs/cgroup/memory/memory.usage_in_bytes", "1073741824\n"},
      {"/sys/fs/cgroup/memory/inner/memory.limit_in_bytes", "9223372036854771712\n"},
      {"/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "150000\n"},
      {"/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"}};
  const MemoryFacts facts = within_limits({8 * kGb, 4 * kGb, ""}, cgroup_memory_limits(reader(host_namespace)));
  EXPECT_EQ(facts.total_bytes, 2 * kGb);
  EXPECT_EQ(facts.available_bytes, kGb);
  EXPECT_EQ(facts.limited_by, "memory.limit_in_bytes of /sys/fs/cgroup/memory");
  EXPECT_EQ(cgroup_cpu_count(reader(host_namespace)), 2);
}

TEST(Cgroups, APathOutsideOfTheMountStandsForItsRoot) {
  const Files files = {{"/proc/self/cgroup", "0::/../other\n"},
                       {"/proc/self/mountinfo", kUnified},
                       {"/sys/fs/cgroup/memory.max", "5\n"}};
  EXPECT_EQ(cgroup_folders(reader(files), ""), std::vector<std::string>{"/sys/fs/cgroup"});
}

TEST(Cgroups, BothVersionsAtOnceAreRead) {
  const Files files = {
      {"/proc/self/cgroup", "4:memory:/job\n1:cpu:/\n0::/\n"},
      {"/proc/self/mountinfo",
       "28 20 0:25 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n29 20 0:26 / /sys/fs/cgroup/memory rw - cgroup "
       "cgroup rw,memory\n30 20 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"},
      {"/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "4294967296\n"},
      {"/sys/fs/cgroup/memory/job/memory.usage_in_bytes", "3221225472\n"},
      {"/sys/fs/cgroup/memory/job/memory.stat",
       "cache 5\ninactive_file 7\ntotal_inactive_file 536870912\ntotal_active_file 536870912\n"},
      {"/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"},
      {"/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"}};
  const auto limits = cgroup_memory_limits(reader(files));
  ASSERT_EQ(limits.size(), 1u);
  EXPECT_EQ(limits[0].limit_bytes - limits[0].used_bytes, 2 * kGb);
  EXPECT_EQ(cgroup_cpu_count(reader(files)), std::nullopt);
}

TEST(Cgroups, AMachineWithoutThemHasNoLimits) {
  const Files none;
  EXPECT_TRUE(cgroup_memory_limits(reader(none)).empty());
  EXPECT_EQ(cgroup_cpu_count(reader(none)), std::nullopt);
  const Files strange = {{"/proc/self/cgroup", "nonsense\n0:\n"}, {"/proc/self/mountinfo", "1 2 3\n - \n"}};
  EXPECT_TRUE(cgroup_memory_limits(reader(strange)).empty());
}

TEST(MemoryLimits, UnlimitedAndOverdrawnLimitsAreUnderstood) {
  const MemoryFacts machine = {10, 7, ""};
  const std::vector<MemoryLimit> unlimited = {{INT64_MAX, 5, "a"}, {0, 0, "b"}};
  EXPECT_EQ(within_limits(machine, unlimited).total_bytes, 10);
  EXPECT_EQ(within_limits(machine, unlimited).available_bytes, 7);
  EXPECT_EQ(within_limits(machine, unlimited).limited_by, "");
  const std::vector<MemoryLimit> overdrawn = {{8, 9, "c"}};
  EXPECT_EQ(within_limits(machine, overdrawn).available_bytes, 0);
  EXPECT_EQ(within_limits(machine, overdrawn).limited_by, "c");
}

TEST(MemoryLimits, OfThisMachineAgreeWithItsFacts) {
  const MemoryFacts facts = memory_facts();
  EXPECT_GT(facts.total_bytes, int64_t{64} << 20);
  EXPECT_GT(facts.available_bytes, 0);
  EXPECT_LE(facts.available_bytes, facts.total_bytes);
  for (const MemoryLimit& limit : memory_limits()) {
    EXPECT_TRUE(limit.limit_bytes <= 0 || limit.limit_bytes >= facts.total_bytes) << limit.source;
  }
}

#ifdef _WIN32
TEST(MemoryLimits, OfAJobAreFound) {
  const HANDLE job = CreateJobObjectW(nullptr, nullptr);
  JOBOBJECT_EXTENDED_LIMIT_INFORMATION limits = {};
  limits.BasicLimitInformation.LimitFlags = JOB_OBJECT_LIMIT_JOB_MEMORY | JOB_OBJECT_LIMIT_PROCESS_MEMORY;
  limits.JobMemoryLimit = static_cast<SIZE_T>(kGb);
  limits.ProcessMemoryLimit = static_cast<SIZE_T>(kGb / 2);
  ASSERT_TRUE(SetInformationJobObject(job, JobObjectExtendedLimitInformation, &limits, sizeof(limits)));
  ASSERT_TRUE(AssignProcessToJobObject(job, GetCurrentProcess()));
  JOBOBJECT_EXTENDED_LIMIT_INFORMATION kept = {};
  QueryInformationJobObject(job, JobObjectExtendedLimitInformation, &kept, sizeof(kept), nullptr);
  if (kept.ProcessMemoryLimit == 0) GTEST_SKIP() << "wine accepts a job's memory limits and forgets them";
  const auto found = memory_limits();
  const MemoryFacts facts = within_limits({8 * kGb, 8 * kGb, ""}, found);
  EXPECT_EQ(facts.total_bytes, kGb / 2);
  EXPECT_LT(facts.available_bytes, facts.total_bytes);
  CloseHandle(job);
}
#endif

}  // namespace
}  // namespace deepscale
