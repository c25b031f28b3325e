// Processors and memory of this machine as the launcher needs them to bind ranks: physical cores, their hardware
// threads, packages, NUMA nodes.
//
// Read straight from /sys (about five small files per CPU) and from GetLogicalProcessorInformationEx, not through
// hwloc: what is needed here is four numbers per CPU, while libhwloc would add libudev and libpciaccess to a launcher
// that depends on libc alone and starts in milliseconds, and a binary for Windows to carry along. Threads: any.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "platform/text_reader.h"

namespace deepscale {

struct LogicalCpu {
  int id = 0;    ///< as usable_cpus() counts; on Windows 64 * processor group + number
  int core = 0;  ///< the lowest id among the hardware threads of the same physical core
  int package = 0;
  int node = 0;

  bool operator==(const LogicalCpu&) const = default;
};

struct NumaNode {
  int id = 0;
  int64_t memory_bytes = 0;  ///< 0: none, or unknown. Windows, several nodes: what is free (it tells no more)

  bool operator==(const NumaNode&) const = default;
};

struct CpuTopology {
  std::vector<LogicalCpu> cpus;  ///< those that are online, ascending
  std::vector<NumaNode> nodes;   ///< ascending; at least one

  [[nodiscard]] int core_count() const;
  [[nodiscard]] int package_count() const;
};

/// This machine's. What cannot be found out is taken to be simple: every CPU a core, one package, one node.
CpuTopology cpu_topology();
/// The same from the files of a Linux machine.
CpuTopology sysfs_topology(const TextReader& read);
/// "0-3,8,10-11" as numbers; nothing when it is not such a list. An empty list is one.
std::optional<std::vector<int>> parse_cpu_list(const std::string& text);

/// What one rank is bound to.
struct CoreShare {
  std::vector<int> cpus;           ///< one per physical core, ascending: the first usable hardware thread of each
  std::vector<int> with_siblings;  ///< these and the other usable hardware threads of the same cores
  std::optional<int> memory_node;  ///< the node, when all are in one that has memory and there are several nodes
};

/// Shares the physical cores among which `usable` hardware threads are, for ranks 0, 1, ...: cores / ranks for each,
/// the remainder left unused. Each rank's cores lie in one node when the nodes are large enough for that, ranks are
/// spread over the nodes, and neighbouring ranks are neighbours. Unknown ids in `usable` count as cores of node 0.
/// Throws ConfigError for fewer cores than ranks, and for ranks < 1.
std::vector<CoreShare> share_cores(const CpuTopology& topology, std::span<const int> usable, int ranks);

/// Shares a list that the user has written (--bind_core_list): equal runs in the given order, whatever the cores.
/// Throws ConfigError as share_cores.
std::vector<CoreShare> share_cpu_list(const CpuTopology& topology, std::span<const int> list, int ranks);

/// Binds the calling thread (threads and processes started by it follow). Throws IoError naming the CPUs.
void bind_thread(std::span<const int> cpus);
/// Binds every thread that this process has now, and those to come. Throws IoError.
/// Windows: all CPUs must be of one processor group (64 CPUs).
void bind_process(std::span<const int> cpus);

/// New memory of the calling thread, and of threads and processes started by it, comes from this node alone. False
/// where the system cannot: a kernel without NUMA, a sandbox, no such node. Windows: always false, and not needed:
/// there memory comes from the node of the CPU that asks for it, so binding CPUs is enough.
bool bind_memory(int node);

}  // namespace deepscale
