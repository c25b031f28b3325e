// What this process may use of the machine (CPU set, cgroup limits), and who it is, so that peers can tell whether it
// still lives. Cheap: a few small files each. Threads: any.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace deepscale {

/// CPUs that can run threads of this process at once: the affinity mask, cut to the cgroup's CPU quota (rounded up).
/// At least 1. Linux: sched_getaffinity and cpu.max; Windows: the process affinity and the job's CPU rate.
int usable_cpu_count();

/// Main memory as this process sees it. A cgroup (or job) limit lower than the machine's counts (memory_limits.h).
struct MemoryFacts {
  int64_t total_bytes = 0;
  int64_t available_bytes = 0;  ///< can be taken now without swapping; the page cache counts as available
  std::string limited_by;  ///< the limit behind total_bytes, "memory.max of ..."; empty: it is the machine's memory
};
MemoryFacts memory_facts();
/// The same, cut to what the system lets one process take of its own address space (process_limits.h): for decisions
/// on how much this process keeps.
MemoryFacts process_memory_facts();
/// The machine's alone, whatever limits say.
MemoryFacts machine_memory_facts();

/// A process, safe against reuse of its number.
struct ProcessIdentity {
  int64_t pid = 0;
  uint64_t start_time = 0;  ///< opaque; equal for the same process only

  bool operator==(const ProcessIdentity&) const = default;
};
ProcessIdentity this_process();
/// The number alone; changes in a child after fork().
int64_t this_process_id();
/// False when the process has ended, even if nobody has collected it yet. True when that cannot be found out.
bool is_alive(const ProcessIdentity& process);

/// Number of the user as whom this process runs.
int64_t this_user_id();
/// Makes the folder if it is missing. True when it is this user's and nobody else may write to it.
bool make_private_folder(const std::filesystem::path& path);

/// Where small files for running processes go: in memory where the system has such a place (Linux: /dev/shm), else the
/// temporary folder.
std::filesystem::path runtime_folder();

/// Equal for two processes exactly when they run on the same machine, under the same boot, and see the same process
/// numbers: the condition for reaching each other's memory.
std::string host_identity();

}  // namespace deepscale
