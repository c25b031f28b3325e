// Control groups of this process: where its folders are, and what they limit. Version 2 (one tree), version 1 (a tree
// per controller) and both at once; containers that see only their own part of the tree. A limit of any ancestor holds.
// Reads through a TextReader, so that it is tested on recorded machines. Documents: cgroups(7), Linux
// Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "platform/memory_limits.h"
#include "platform/text_reader.h"

namespace deepscale {

/// Folders of this process's groups for a controller of version 1 ("memory", "cpu"), or of version 2 (empty), from its
/// own up to the root of what is mounted here.
std::vector<std::string> cgroup_folders(const TextReader& read, std::string_view controller);

/// memory.max, memory.high and memory.limit_in_bytes of all of them.
std::vector<MemoryLimit> cgroup_memory_limits(const TextReader& read);

/// CPUs by the smallest quota, rounded up; nothing without a quota.
std::optional<int> cgroup_cpu_count(const TextReader& read);

}  // namespace deepscale
