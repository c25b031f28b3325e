#include <fmt/ranges.h>
#include <linux/mempolicy.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstring>
#include <filesystem>

#include "base/error.h"
#include "platform/machine.h"
#include "platform/process_internal_linux.h"
#include "platform/topology.h"

namespace deepscale {
std::vector<unsigned long> cpu_bit_mask(std::span<const int> cpus) {
  constexpr size_t kBits = sizeof(unsigned long) * CHAR_BIT;
  std::vector<unsigned long> mask(1);
  for (const int cpu : cpus) {
    const size_t word = static_cast<size_t>(cpu) / kBits;
    if (word >= mask.size()) mask.resize(word + 1);
    mask[word] |= 1UL << (static_cast<size_t>(cpu) % kBits);
  }
  return mask;
}

namespace {

constexpr size_t kWordBits = sizeof(unsigned long) * CHAR_BIT;

bool bind_task(pid_t task, const std::vector<unsigned long>& mask) {
  const auto* const set = reinterpret_cast<const cpu_set_t*>(mask.data());
  return sched_setaffinity(task, mask.size() * sizeof(unsigned long), set) == 0;
}

std::vector<unsigned long> checked_mask(std::span<const int> cpus) {
  const bool valid = !cpus.empty() && std::all_of(cpus.begin(), cpus.end(), [](int cpu) { return cpu >= 0; });
  DS_CHECK_AS(IoError, valid, "cannot bind to CPUs \"{}\": at least one, and no negative number, is needed",
              fmt::join(cpus, ","));
  return cpu_bit_mask(cpus);
}

[[noreturn]] void refuse(std::span<const int> cpus, int reason) {
  ds_throw<IoError>("cannot bind to CPUs {}: {}; this process may use {}", fmt::join(cpus, ","), std::strerror(reason),
                    fmt::join(usable_cpus(), ","));
}

}  // namespace

CpuTopology cpu_topology() {
  CpuTopology topology = sysfs_topology(read_text_file);
  if (topology.cpus.empty()) {
    for (const int cpu : usable_cpus()) topology.cpus.push_back({.id = cpu, .core = cpu});
  }
  return topology;
}

void bind_thread(std::span<const int> cpus) {
  if (!bind_task(0, checked_mask(cpus))) refuse(cpus, errno);
}

void bind_process(std::span<const int> cpus) {
  const std::vector<unsigned long> mask = checked_mask(cpus);
  if (!bind_task(0, mask)) refuse(cpus, errno);
  // Threads that are started meanwhile by bound threads are bound already; a second round catches the others.
  for (int round = 0; round < 2; ++round) {
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task", ignored)) {
      const pid_t task = static_cast<pid_t>(std::strtol(entry.path().filename().c_str(), nullptr, 10));
      if (task > 0 && !bind_task(task, mask) && errno != ESRCH) refuse(cpus, errno);
    }
  }
}

bool bind_memory(int node) {
  // No allocation here: children call this between fork and exec.
  std::array<unsigned long, 1024 / kWordBits> mask = {};  // kernels have at most 1024 nodes
  if (node < 0 || node >= 1024) return false;
  mask[static_cast<size_t>(node) / kWordBits] = 1UL << (static_cast<size_t>(node) % kWordBits);
  // The kernel reads one bit less than it is told.
  return syscall(SYS_set_mempolicy, MPOL_BIND, mask.data(), mask.size() * kWordBits + 1) == 0;
}

}  // namespace deepscale
