// Limits of memory that the system puts on this process and its relatives: control groups on Linux, job objects on
// Windows. memory_facts() (resources.h) counts them in; this is for reports and error messages. Threads: any.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "platform/resources.h"

namespace deepscale {

struct MemoryLimit {
  int64_t limit_bytes = 0;
  int64_t used_bytes = 0;  ///< by everybody under this limit, without page cache that would be given back
  std::string source;      ///< "memory.max of /sys/fs/cgroup/user.slice"
};

/// Every limit above this process, in no order; the smallest is not always the tightest, because others share it.
/// Linux: memory.max and memory.high (above it a process is slowed down so much that it counts as a limit) of each
/// control group from this process's up to the root, version 2 and 1. Swap limits do not appear: memory_facts() counts
/// main memory only. Windows: the limits of the innermost job; those of jobs around it cannot be asked for.
std::vector<MemoryLimit> memory_limits();

/// The machine's memory cut to the limits; `limited_by` names the one that leaves the smallest total.
MemoryFacts within_limits(MemoryFacts machine, std::span<const MemoryLimit> limits);

}  // namespace deepscale
