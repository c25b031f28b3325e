// What the system lets one process take of its own address space, beside the limits of groups of processes
// (memory_limits.h). Threads: any.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace deepscale {

struct ProcessLimit {
  std::string name;  ///< "RLIMIT_AS"
  int64_t limit_bytes = 0;
  int64_t used_bytes = 0;      ///< by this process now
  bool counts_shared = false;  ///< whether mapped shared memory counts too
  std::string how_to_raise;    ///< a sentence for users
};

/// The limits that are set; empty when nothing limits this process. Linux: RLIMIT_AS (all of the address space) and
/// RLIMIT_DATA (private memory). Windows: none, jobs are in memory_limits().
std::vector<ProcessLimit> process_limits();

}  // namespace deepscale
