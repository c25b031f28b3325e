// What a machine gives to a run, and whether a memory plan fits into it.
//
//   const MachineLimits limits = read_machine_limits({"/nvme"});
//   const std::vector<Shortage> short_of = check_plan(plan, limits);
//   fmt::print("{}", to_table(plan, limits));
// Torch-free. Threads: any.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "memory/memory_plan.h"
#include "platform/memory_limits.h"
#include "platform/process_limits.h"
#include "platform/resources.h"

namespace deepscale {

struct DiskLimit {
  std::string path;      ///< as the configuration names it
  std::string identity;  ///< equal for folders of one file system; may be empty
  int64_t available_bytes = 0;
  bool in_memory = false;  ///< a tmpfs: what is in its files is taken from memory
};

/// Of one host; the others are taken to be like it.
struct MachineLimits {
  MemoryFacts memory;                     ///< of the machine, whatever groups it is divided into
  std::vector<MemoryLimit> groups;        ///< cgroups and jobs around this process, those below the machine's memory
  std::vector<ProcessLimit> process;      ///< RLIMIT_AS, RLIMIT_DATA
  std::optional<int64_t> device_bytes;    ///< free memory of each rank's device; nothing: not known
  std::optional<int64_t> lockable_bytes;  ///< that may still be locked; nothing: no limit
  std::string how_to_lock_more;           ///< a sentence for users
  std::optional<int64_t> shared_folder_bytes;  ///< free in /dev/shm; nothing where there is none
  /// Shared memory comes from that folder, because the system does not let ranks reach each other's memory without a
  /// name. As a rule it does not, and the folder's size is no limit.
  bool shares_through_folder = false;
  std::vector<DiskLimit> disks;
};

/// What the system says now. nvme_paths: folders of files; empty ones are left out. Device memory is not asked for:
/// whoever knows the device sets it.
MachineLimits read_machine_limits(const std::vector<std::string>& nvme_paths = {});

/// Something that does not suffice.
struct Shortage {
  std::string resource;  ///< "main memory of the host", "memory.max of /sys/fs/cgroup/job", "RLIMIT_AS of a process"
  int64_t needed_bytes = 0;
  int64_t available_bytes = 0;
  bool fatal = true;   ///< false: the run works without, slower
  std::string remedy;  ///< about the resource, not the configuration; may be empty

  [[nodiscard]] int64_t missing_bytes() const { return needed_bytes - available_bytes; }
};

/// Everything that the plan needs more of than there is, tightest memory first. Non-fatal ones come last.
std::vector<Shortage> check_plan(const MemoryPlan& plan, const MachineLimits& limits);
/// Whether nothing fatal is short.
bool fits(const MemoryPlan& plan, const MachineLimits& limits);

/// "main memory of the host: 120.0 GiB are needed, 62.1 GiB are available, 57.9 GiB are missing; remedy", one line
/// each.
std::string describe(const std::vector<Shortage>& shortages);

/// The plan as lines of text with the limits beneath, for logs and terminals.
std::string to_table(const MemoryPlan& plan, const MachineLimits& limits);
/// The same as a JSON object, with "fits" and "shortages". indent < 0: on one line.
std::string to_json(const MemoryPlan& plan, const MachineLimits& limits, int indent = -1);

}  // namespace deepscale
