#include <fmt/ranges.h>

#include <algorithm>
#include <map>

#include "base/error.h"
#include "platform/machine.h"
#include "platform/resources.h"
#include "platform/text_windows.h"
#include "platform/topology.h"

namespace deepscale {
namespace {

constexpr int kGroupCpus = 64;

std::vector<int> cpus_of(const GROUP_AFFINITY& affinity) {
  std::vector<int> cpus;
  for (int cpu = 0; cpu < kGroupCpus; ++cpu) {
    if ((affinity.Mask >> cpu & 1) != 0) cpus.push_back(affinity.Group * kGroupCpus + cpu);
  }
  return cpus;
}

std::vector<char> processor_records() {
  DWORD bytes = 0;
  GetLogicalProcessorInformationEx(RelationAll, nullptr, &bytes);
  std::vector<char> records(bytes);
  auto* const first = reinterpret_cast<SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX*>(records.data());
  if (bytes == 0 || !GetLogicalProcessorInformationEx(RelationAll, first, &bytes)) return {};
  records.resize(bytes);
  return records;
}

int64_t node_memory(int node) {
  ULONGLONG available = 0;
  return GetNumaAvailableMemoryNodeEx(static_cast<USHORT>(node), &available) ? static_cast<int64_t>(available) : 0;
}

/// The mask of CPUs that all lie in one processor group.
GROUP_AFFINITY group_affinity(std::span<const int> cpus) {
  const bool valid = !cpus.empty() && std::all_of(cpus.begin(), cpus.end(), [&](int cpu) {
    return cpu >= 0 && cpu / kGroupCpus == cpus.front() / kGroupCpus;
  });
  DS_CHECK_AS(IoError, valid,
              "cannot bind to CPUs \"{}\": at least one, no negative number, and all of one processor group (64 CPUs) "
              "are needed",
              fmt::join(cpus, ","));
  GROUP_AFFINITY affinity = {};
  affinity.Group = static_cast<WORD>(cpus.front() / kGroupCpus);
  for (const int cpu : cpus) affinity.Mask |= KAFFINITY{1} << (cpu % kGroupCpus);
  return affinity;
}

[[noreturn]] void refuse(std::span<const int> cpus, DWORD reason) {
  ds_throw<IoError>("cannot bind to CPUs {}: {}; this process may use {}", fmt::join(cpus, ","), error_text(reason),
                    fmt::join(usable_cpus(), ","));
}

}  // namespace

CpuTopology cpu_topology() {
  std::map<int, LogicalCpu> cpus;
  CpuTopology topology;
  int packages = 0;
  const std::vector<char> records = processor_records();
  for (size_t at = 0; at < records.size();) {
    const auto& record = *reinterpret_cast<const SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX*>(records.data() + at);
    at += record.Size;
    if (record.Relationship == RelationProcessorCore) {
      const std::vector<int> threads = cpus_of(record.Processor.GroupMask[0]);  // a core lies in one group
      for (const int cpu : threads) {
        cpus[cpu].id = cpu;
        cpus[cpu].core = threads.front();
      }
    } else if (record.Relationship == RelationProcessorPackage) {
      for (WORD group = 0; group < record.Processor.GroupCount; ++group) {
        for (const int cpu : cpus_of(record.Processor.GroupMask[group])) cpus[cpu].package = packages;
      }
      ++packages;
    } else if (record.Relationship == RelationNumaNode) {
      const auto node = static_cast<int>(record.NumaNode.NodeNumber);
      topology.nodes.push_back({node, node_memory(node)});
      for (const int cpu : cpus_of(record.NumaNode.GroupMask)) cpus[cpu].node = node;
    }
  }
  if (cpus.empty()) {
    for (const int cpu : usable_cpus()) cpus[cpu] = {.id = cpu, .core = cpu};
  }
  for (const auto& [id, cpu] : cpus) topology.cpus.push_back(cpu);
  std::sort(topology.nodes.begin(), topology.nodes.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
  if (topology.nodes.empty()) topology.nodes.push_back({});
  if (topology.nodes.size() == 1) topology.nodes[0].memory_bytes = memory_facts().total_bytes;
  return topology;
}

void bind_thread(std::span<const int> cpus) {
  const GROUP_AFFINITY affinity = group_affinity(cpus);
  if (!SetThreadGroupAffinity(GetCurrentThread(), &affinity, nullptr)) refuse(cpus, GetLastError());
}

void bind_process(std::span<const int> cpus) {
  const GROUP_AFFINITY affinity = group_affinity(cpus);
  PROCESSOR_NUMBER here = {};
  GetCurrentProcessorNumberEx(&here);
  if (here.Group != affinity.Group) refuse(cpus, ERROR_NOT_SUPPORTED);
  if (!SetProcessAffinityMask(GetCurrentProcess(), affinity.Mask)) refuse(cpus, GetLastError());
}

bool bind_memory(int) {
  return false;
}

}  // namespace deepscale
