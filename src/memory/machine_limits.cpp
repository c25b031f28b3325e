#include "memory/machine_limits.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "platform/disk_identity.h"
#include "platform/disk_space.h"
#include "platform/machine.h"
#include "platform/memory_lock.h"

namespace deepscale {
namespace {

void need(std::vector<Shortage>& found, Shortage shortage) {
  shortage.available_bytes = std::max<int64_t>(shortage.available_bytes, 0);
  if (shortage.needed_bytes > shortage.available_bytes) found.push_back(std::move(shortage));
}

/// Of all ranks of a host.
int64_t bytes_on_disk(const MemoryPlan& plan, const DiskLimit& disk) {
  int64_t bytes = disk.path == plan.optimizer_path ? plan.optimizer_file_bytes : 0;
  bytes += disk.path == plan.param_path ? plan.param_file_bytes : 0;
  return bytes * plan.ranks_per_host;
}

void check_disks(const MemoryPlan& plan, const MachineLimits& limits, std::vector<Shortage>& found) {
  // Folders of one file system share its room.
  std::map<std::string, Shortage> disks;
  for (const DiskLimit& disk : limits.disks) {
    const int64_t needed = bytes_on_disk(plan, disk);
    if (needed == 0) continue;
    Shortage& whole = disks[disk.identity.empty() ? disk.path : disk.identity];
    whole.resource += (whole.resource.empty() ? "disk of nvme_path " : " and ") + disk.path;
    whole.needed_bytes += needed;
    whole.available_bytes = disk.available_bytes;
    whole.remedy = "free space there or choose another nvme_path";
  }
  for (auto& [identity, whole] : disks) need(found, std::move(whole));
}

void check_processes(const MemoryPlan& plan, const MachineLimits& limits, std::vector<Shortage>& found) {
  const int64_t own = plan.bytes(MemoryPlace::kHostPinned) + plan.bytes(MemoryPlace::kHostPageable);
  // Every rank maps the shared memory of all ranks of its host.
  const int64_t shared = plan.bytes(MemoryPlace::kShared) * plan.ranks_per_host;
  for (const ProcessLimit& limit : limits.process) {
    need(found, {limit.name + " of a process", own + (limit.counts_shared ? shared : 0),
                 limit.limit_bytes - limit.used_bytes, true, limit.how_to_raise});
  }
}

}  // namespace

MachineLimits read_machine_limits(const std::vector<std::string>& nvme_paths) {
  MachineLimits limits;
  limits.memory = machine_memory_facts();
  for (const MemoryLimit& group : memory_limits()) {
    if (group.limit_bytes < limits.memory.total_bytes) limits.groups.push_back(group);
  }
  limits.process = process_limits();
  const MemoryLockFacts lock = memory_lock_facts();
  if (lock.limit_bytes) limits.lockable_bytes = std::max<int64_t>(*lock.limit_bytes - lock.locked_bytes, 0);
  limits.how_to_lock_more = lock.how_to_raise;
  if (shared_memory_bytes() > 0) {
    if (const auto room = disk_space("/dev/shm")) limits.shared_folder_bytes = room->available_bytes;
  }
  for (const std::string& path : nvme_paths) {
    const auto known = [&](const DiskLimit& disk) { return disk.path == path; };
    if (path.empty() || std::any_of(limits.disks.begin(), limits.disks.end(), known)) continue;
    const auto room = disk_space(path);
    if (!room) continue;
    FileSystemFacts system = file_system_of(path);
    limits.disks.push_back({path, std::move(system.key), room->available_bytes, system.in_memory});
  }
  return limits;
}

std::vector<Shortage> check_plan(const MemoryPlan& plan, const MachineLimits& limits) {
  std::vector<Shortage> found;
  if (limits.device_bytes) {
    need(found, {"memory of a device", plan.bytes(MemoryPlace::kDevice), *limits.device_bytes, true, ""});
  }
  int64_t host = plan.host_memory_bytes();
  for (const DiskLimit& disk : limits.disks) host += disk.in_memory ? bytes_on_disk(plan, disk) : 0;
  if (limits.memory.total_bytes > 0) {
    need(found, {"main memory of the host", host, limits.memory.available_bytes, true,
                 limits.memory.available_bytes < limits.memory.total_bytes - limits.memory.total_bytes / 8
                     ? fmt::format("other programs hold {}",
                                   readable_bytes(limits.memory.total_bytes - limits.memory.available_bytes))
                     : ""});
  }
  for (const MemoryLimit& group : limits.groups) {
    if (group.limit_bytes <= 0) continue;
    need(found, {group.source, host, group.limit_bytes - std::max<int64_t>(group.used_bytes, 0), true,
                 "raise it where the job or container is made"});
  }
  check_processes(plan, limits, found);
  if (limits.shares_through_folder && limits.shared_folder_bytes) {
    need(found, {"/dev/shm", plan.bytes(MemoryPlace::kShared) * plan.ranks_per_host, *limits.shared_folder_bytes, true,
                 "enlarge it (containers: --shm-size)"});
  }
  check_disks(plan, limits, found);
  std::stable_sort(found.begin(), found.end(),
                   [](const Shortage& a, const Shortage& b) { return a.missing_bytes() > b.missing_bytes(); });
  if (limits.lockable_bytes) {
    need(found, {"memory that may be locked", plan.bytes(MemoryPlace::kHostPinned), *limits.lockable_bytes, false,
                 limits.how_to_lock_more});
  }
  return found;
}

bool fits(const MemoryPlan& plan, const MachineLimits& limits) {
  const std::vector<Shortage> found = check_plan(plan, limits);
  return std::none_of(found.begin(), found.end(), [](const Shortage& shortage) { return shortage.fatal; });
}

std::string describe(const std::vector<Shortage>& shortages) {
  std::string text;
  for (const Shortage& shortage : shortages) {
    text += fmt::format("{}: {} needed, {} available, {} missing{}{}{}\n", shortage.resource,
                        readable_bytes(shortage.needed_bytes), readable_bytes(shortage.available_bytes),
                        readable_bytes(shortage.missing_bytes()), shortage.fatal ? "" : " (works without, slower)",
                        shortage.remedy.empty() ? "" : "; ", shortage.remedy);
  }
  return text;
}

}  // namespace deepscale
